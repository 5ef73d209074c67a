"""The same sweep with the two adapters left unmerged on one base, as the book keeps them."""

from . import pair, sweep


def prepare(job, folder, device):
    return sweep.prepare(job, folder, device, pair.unmerged)
