// Decisions that were recorded, made again with ONNX Runtime: golden ones, and those of an episode. It runs in a page,
// with onnxruntime-web, and in Node, with onnxruntime-node.

const TYPES = {
  BOOL: ["bool", Uint8Array], U8: ["uint8", Uint8Array], U16: ["uint16", Uint16Array], U32: ["uint32", Uint32Array],
  U64: ["uint64", BigUint64Array], I8: ["int8", Int8Array], I16: ["int16", Int16Array], I32: ["int32", Int32Array],
  I64: ["int64", BigInt64Array], F32: ["float32", Float32Array], F64: ["float64", Float64Array],
};
const INPUT = "input/", OUTPUT = "output/", STATE = "state/", NEXT = "next_"; // of names, as golden decisions have them
const CHANGED = "changed/", PALETTE = "palette/"; // in the place of inputs, in recorded episodes

/** Return the bytes of a file that may be compressed with gzip; some servers decompress it themselves. */
export async function decompress(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Return what a file of golden decisions or of a recorded episode has.
 *
 * `tensors` are by name, each with its `type`, the `shape` of a row, the number of `rows`, and `row(number)`, the
 * numbers of a row. `metadata` are the file's.
 */
export function read(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const start = 8 + Number(view.getBigUint64(0, true));
  const { __metadata__: metadata = {}, ...header } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  const tensors = {};
  for (const [name, { dtype, shape: [rows, ...shape], data_offsets: [from, to] }] of Object.entries(header)) {
    if (!TYPES[dtype]) throw Error(`${name} is ${dtype}, which this page does not read`);
    if (start + to > bytes.length) throw Error(`it ends before ${name} does`);
    const [type, Numbers] = TYPES[dtype], content = bytes.slice(start + from, start + to), size = (to - from) / rows;
    if (name.startsWith(CHANGED)) for (let at = size; at < content.length; at++) content[at] ^= content[at - size];
    const numbers = new Numbers(content.buffer), each = numbers.length / rows;
    const row = (number) => numbers.subarray(number * each, (number + 1) * each);
    tensors[name.replace(CHANGED, INPUT)] = { type, shape, rows, numbers, row };
  }
  for (const name of Object.keys(tensors).filter((name) => name.startsWith(PALETTE))) {
    const image = tensors[name.replace(PALETTE, INPUT)], colours = tensors[name].numbers, codes = image.row;
    image.shape = [...image.shape, 3];
    image.row = (number) => {
      const coded = codes(number), pixels = new Uint8Array(3 * coded.length);
      for (let at = 0; at < pixels.length; at++) pixels[at] = colours[3 * coded[Math.floor(at / 3)] + (at % 3)];
      return pixels;
    };
  }
  return { tensors, metadata };
}

/** Return the tensors whose names begin with a word, by the rest of their names. */
export const under = (tensors, word) => Object.fromEntries(Object.entries(tensors)
  .filter(([name]) => name.startsWith(word)).map(([name, tensor]) => [name.slice(word.length), tensor]));

/**
 * Make the decisions again, in their order; yield each as `{number, made, microseconds, largest, difference}`.
 *
 * `made` is what came of it, by name. `largest` is the largest difference of a number that rounding explains.
 * `difference` is the first that it does not, if there is one: `{name, found, expected, allowed}`.
 */
export async function* replay({ Tensor }, session, tensors) {
  const inputs = under(tensors, INPUT), outputs = under(tensors, OUTPUT), [tolerance] = tensors.tolerance.row(0);
  const given = ({ type, shape, row }, number) => new Tensor(type, row(number), [1, ...shape]);
  const states = under(tensors, STATE), feed = {};
  for (const name in states) feed[name] = given(states[name], 0);
  for (let number = 0; number < tensors.tie.rows; number++) {
    for (const name in inputs) feed[name] = given(inputs[name], number);
    const read = Object.fromEntries(session.inputNames.map((name) => [name, feed[name]]));
    const begun = performance.now();
    const made = await session.run(read);
    const microseconds = 1000 * (performance.now() - begun), [tie] = tensors.tie.row(number);
    for (const name in made) if (name.startsWith(NEXT)) feed[name.slice(NEXT.length)] = made[name];
    yield { number, made, microseconds, ...compare(made, outputs, number, tolerance, tie) };
  }
}

/** Return the largest difference that rounding explains, and the first that it does not, if there is one. */
function compare(made, outputs, number, tolerance, tie) {
  let largest = 0;
  for (const [name, { type, row }] of Object.entries(outputs)) {
    const real = type.startsWith("float"), numbers = row(number), found = made[name]?.data ?? [];
    if (tie && !real) continue; // two values are so close that either choice is right
    for (const [at, expected] of numbers.entries()) {
      if (found[at] === expected || (Number.isNaN(found[at]) && Number.isNaN(expected))) continue;
      const differs = Math.abs(Number(found[at]) - Number(expected));
      const allowed = real && Number.isFinite(expected) ? tolerance * Math.max(1, Math.abs(expected)) : 0;
      if (!(differs <= allowed)) {
        const place = numbers.length > 1 ? `${name}[${at}]` : name;
        return { largest, difference: { name: place, found: found[at], expected, allowed } };
      }
      largest = Math.max(largest, differs);
    }
  }
  return { largest };
}

/** Say what no rounding explains in a decision. */
export const tell = ({ number, difference: { name, found, expected, allowed } }) =>
  `decision ${number}: ${name} is ${found}, expected ${expected}` +
  (allowed ? `, ${allowed.toExponential(1)} allowed` : "");
