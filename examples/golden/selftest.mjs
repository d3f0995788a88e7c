// Replay golden decisions with ONNX Runtime: npm install onnxruntime-node; node selftest.mjs models/dqn
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";
const [, , folder] = process.argv, file = readFileSync(`${folder}/golden.safetensors`);
const start = 8 + Number(file.readBigUInt64LE()), header = JSON.parse(file.subarray(8, start));
const TYPES = { BOOL: ["bool", Uint8Array], U8: ["uint8", Uint8Array], I8: ["int8", Int8Array],
  I16: ["int16", Int16Array], I32: ["int32", Int32Array], I64: ["int64", BigInt64Array],
  F32: ["float32", Float32Array], F64: ["float64", Float64Array] };
const tensor = (name, row = 0) => { // one row of what the file has under a name
  const { dtype, shape: [rows, ...sizes], data_offsets: [from, to] } = header[name], [type, Numbers] = TYPES[dtype];
  const size = (to - from) / rows, bytes = Uint8Array.from(file.subarray(start + from + row * size, start + from + (row + 1) * size));
  return new ort.Tensor(type, new Numbers(bytes.buffer), [1, ...sizes]);
};
const under = (start, row) => Object.fromEntries(Object.keys(header).filter((name) => name.startsWith(start))
  .map((name) => [name.slice(start.length), tensor(name, row)]));
const session = await ort.InferenceSession.create(`${folder}/policy.onnx`), [tolerance] = tensor("tolerance").data;
let feed = under("state/"), rounded = 0;
for (let row = 0; row < header.tie.shape[0]; row++) {
  feed = { ...feed, ...under("input/", row) };
  const made = await session.run(Object.fromEntries(session.inputNames.map((name) => [name, feed[name]])));
  for (const name in made) if (name.startsWith("next_")) feed[name.slice(5)] = made[name];
  let same = true;
  for (const [name, { type, data }] of Object.entries(under("output/", row))) data.forEach((expected, at) => {
    const found = made[name].data[at], real = type.startsWith("float"), tie = !real && tensor("tie", row).data[0];
    same &&= found === expected;
    const allowed = real && Number.isFinite(expected) ? tolerance * Math.max(1, Math.abs(expected)) : 0;
    if (found !== expected && !tie && !(Math.abs(Number(found - expected)) <= allowed))
      throw Error(`decision ${row}: ${name} is ${found}, expected ${expected}: damage, as no rounding explains it`);
  });
  rounded += !same;
}
console.log(`${header.tie.shape[0]} golden decisions, all as they were, ${rounded} of them but for rounding`);
