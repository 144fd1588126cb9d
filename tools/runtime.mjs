// ONNX Runtime Web for the page: `npm ci --ignore-scripts && node tools/runtime.mjs`, or `make runtime`.
// npm checks the package against the hash in package-lock.json. Of its 130 MB the page needs two files: the module with
// its glue code, and the WebAssembly for one thread. The second is kept compressed only, as it is sent.
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";

const top = new URL("../", import.meta.url);
const dist = new URL("node_modules/onnxruntime-web/dist/", top);
const out = new URL("trashsorting/static/runtime/", top);
const wasm = readFileSync(new URL("ort-wasm-simd-threaded.wasm", dist));
const { BROTLI_PARAM_QUALITY, BROTLI_PARAM_LGWIN, BROTLI_PARAM_SIZE_HINT } = constants;
const params = { [BROTLI_PARAM_QUALITY]: 9, [BROTLI_PARAM_LGWIN]: 24, [BROTLI_PARAM_SIZE_HINT]: wasm.length };

rmSync(out, { recursive: true, force: true });
mkdirSync(out);
for (const [name, data] of Object.entries({
  "ort.mjs": readFileSync(new URL("ort.wasm.bundle.min.mjs", dist)),
  "ort.wasm.br": brotliCompressSync(wasm, { params }),
  "ort.wasm.gz": gzipSync(wasm, { level: 9 }),
})) {
  writeFileSync(new URL(name, out), data);
  console.log(`trashsorting/static/runtime/${name}: ${(data.length / 1e6).toFixed(2)} MB`);
}
