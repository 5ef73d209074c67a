/* The memory of the lab and the one product that everything is made of: y = x W, in single precision.

The product runs as WebAssembly (kernel.wat, beside this file; BYTES is what it compiles to) and, where a browser has
none or a page forbids it, as the same loops in JavaScript. Matrices lie in one memory, addressed in numbers (not
bytes). W is kept in panels of eight columns, [panel, inner, 8]; rows of x come in fours. */
"use strict";
window.rewired = window.rewired || {};

(function (rewired) {
  /** An error whose message is one clear paragraph for the reader of the page. */
  rewired.Problem = class Problem extends Error {};

  const BYTES =
    "AGFzbQEAAAABDQFgCX9/f39/f39/fwACDwEDbGFiBm1lbW9yeQIAAQMCAQAHCwEHcHJvZHVjdAAACrYEAbMEAgh/C3sDQEEAIQkgACEL" +
    "IAQhEANAIAsgAWohDCAMIAFqIQ0gDSABaiEO/QwAAAAAAAAAAAAAAAAAAAAAIRT9DAAAAAAAAAAAAAAAAAAAAAAhFf0MAAAAAAAAAAAA" +
    "AAAAAAAAACEW/QwAAAAAAAAAAAAAAAAAAAAAIRf9DAAAAAAAAAAAAAAAAAAAAAAhGP0MAAAAAAAAAAAAAAAAAAAAACEZ/QwAAAAAAAAA" +
    "AAAAAAAAAAAAIRr9DAAAAAAAAAAAAAAAAAAAAAAhGyACIQ8gByEKA0AgD/0ABAAhESAP/QAEECESIAv9CQIAIRMgFCATIBH95gH95AEh" +
    "FCAVIBMgEv3mAf3kASEVIAz9CQIAIRMgFiATIBH95gH95AEhFiAXIBMgEv3mAf3kASEXIA39CQIAIRMgGCATIBH95gH95AEhGCAZIBMg" +
    "Ev3mAf3kASEZIA79CQIAIRMgGiATIBH95gH95AEhGiAbIBMgEv3mAf3kASEbIAtBBGohCyAMQQRqIQwgDUEEaiENIA5BBGohDiAPQSBq" +
    "IQ8gCkEBayIKDQALIBAgFP0LBAAgECAV/QsEECAQIAVqIRAgECAW/QsEACAQIBf9CwQQIBAgBWohECAQIBj9CwQAIBAgGf0LBBAgECAF" +
    "aiEQIBAgGv0LBAAgECAb/QsEECAQIAVqIRAgDiABIAdBBGxraiELIAlBBGoiCSAGSA0ACyACIANqIQIgBEEgaiEEIAhBCGsiCEEASg0A" +
    "CwsApwEEbmFtZQKFAQEAHAABeAEGeF9zdGVwAgF3AwVwYW5lbAQBeQUGeV9zdGVwBgRyb3dzBwVpbm5lcggHY29sdW1ucwkDcm93CgFr" +
    "CwJ4MAwCeDENAngyDgJ4Mw8CYXQQA291dBECd2ESAndiEwF2FAJhMBUCYjAWAmExFwJiMRgCYTIZAmIyGgJhMxsCYjMDGAEAAwAGcGFu" +
    "ZWxzAQVmb3VycwIEc3Vtcw==";
  const PAGE = 16384;  // numbers in one page of WebAssembly's memory

  /** The bytes that a base64 text stands for. */
  rewired.fromBase64 = function (text) {
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  };

  /** Multiples of four rows and eight columns: what the product reads and writes. */
  rewired.fours = (count) => (count + 3) & ~3;
  rewired.eights = (count) => (count + 7) & ~7;

  /** One growing memory of single-precision numbers. Growing detaches views: read `store.F` anew after `take`. */
  rewired.Store = class Store {
    /** @param {boolean} wasm whether to try WebAssembly. */
    constructor(wasm = true) {
      this.used = 4;
      this.usesWasm = false;
      if (wasm) this.compile();
      if (!this.usesWasm) this.F = new Float32Array(PAGE);
    }

    compile() {
      try {
        this.memory = new WebAssembly.Memory({ initial: 1 });
        const module = new WebAssembly.Module(rewired.fromBase64(BYTES));
        const instance = new WebAssembly.Instance(module, { lab: { memory: this.memory } });
        this.kernel = instance.exports.product;
        this.F = new Float32Array(this.memory.buffer);
        this.usesWasm = true;
      } catch (error) {  // no WebAssembly, no SIMD, or a page that forbids it
        this.usesWasm = false;
      }
    }

    /** The place of `count` new numbers, all 0; every place is a multiple of four. */
    take(count) {
      const place = this.used;
      this.used += rewired.fours(count);
      if (this.used > this.F.length) this.grow(this.used - this.F.length);
      return place;
    }

    grow(numbers) {
      if (this.usesWasm) {
        this.memory.grow(Math.ceil(numbers / PAGE));
        this.F = new Float32Array(this.memory.buffer);
      } else {
        const larger = new Float32Array(PAGE * Math.ceil((this.used + this.used / 8) / PAGE));
        larger.set(this.F);
        this.F = larger;
      }
    }

    /** Rows of x [rows, inner] times W [inner, columns] into y; `step` numbers lead from a row to the next.
     * @param {{at, step}} x @param {{at, panel}} w @param {{at, step}} y all places in numbers */
    product(x, w, y, rows, inner, columns) {
      if (this.usesWasm) {
        this.kernel(4 * x.at, 4 * x.step, 4 * w.at, 4 * w.panel, 4 * y.at, 4 * y.step, rows, inner, columns);
      } else {
        productInJavaScript(this.F, x, w, y, [rows, inner, columns]);
      }
    }

    /** Put W, given as rows of outputs [columns, inner], into panels at a place: [panel, inner, 8]. */
    pack(weights, columns, inner, at) {
      const F = this.F;
      for (let column = 0; column < columns; column++) {
        let to = at + (column >> 3) * inner * 8 + (column & 7);
        for (let k = 0, from = column * inner; k < inner; k++, to += 8) F[to] = weights[from + k];
      }
      return { at, panel: inner * 8 };
    }
  };

  /** What kernel.wat does: two rows and four columns at a time, as many sums as engines keep in registers. */
  function productInJavaScript(F, x, w, y, [rows, inner, columns]) {
    for (let column = 0; column < columns; column += 4) {
      const panel = w.at + (column >> 3) * w.panel + (column & 4);
      for (let row = 0; row < rows; row += 2) {
        let a = x.at + row * x.step, b = a + x.step, at = panel;
        let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
        for (let k = 0; k < inner; k++, at += 8) {
          const u = F[a++], v = F[b++], w0 = F[at], w1 = F[at + 1], w2 = F[at + 2], w3 = F[at + 3];
          a0 += u * w0; a1 += u * w1; a2 += u * w2; a3 += u * w3;
          b0 += v * w0; b1 += v * w1; b2 += v * w2; b3 += v * w3;
        }
        const out = y.at + row * y.step + column, next = out + y.step;
        F[out] = a0; F[out + 1] = a1; F[out + 2] = a2; F[out + 3] = a3;
        F[next] = b0; F[next + 1] = b1; F[next + 2] = b2; F[next + 3] = b3;
      }
    }
  }
})(window.rewired);
