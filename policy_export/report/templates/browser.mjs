// The proof in the reader's browser: each policy's program replays its golden decisions, then a recorded episode.

const MOST_FRAMES = 600; // of an episode, which is drawn in about ten seconds
const FRAMES_IF_STILL = 8; // for those who have asked for less motion
const WARM_UP = 300; // milliseconds, in which the browser compiles what runs often
const section = document.getElementById("prove");
const count = (number) => Math.round(number).toLocaleString("en-US");
const url = (path) => new URL(`browser/${path}`, document.baseURI);
const nextFrame = () => new Promise((go) => (document.hidden ? setTimeout(go) : requestAnimationFrame(go)));

/** Return the bytes of a file; of one that is not there, nothing if it may be missing. */
async function load(path, { optional = false } = {}) {
  const answer = await fetch(url(path), { cache: "no-cache" });
  if (answer.status === 404 && optional) return undefined;
  if (!answer.ok) throw Error(`browser/${path} cannot be loaded: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** Return ONNX Runtime and what replays and draws. */
async function loadTools() {
  const paths = ["ort/ort.wasm.bundle.min.mjs", "replay.mjs", "screens.mjs"];
  const [ort, replay, screens] = await Promise.all(paths.map((path) => import(url(path))));
  ort.env.wasm.numThreads = 1; // more need headers that plain servers do not send
  ort.env.wasm.wasmPaths = { wasm: url("ort/ort-wasm-simd-threaded.wasm").href };
  return { ort, ...replay, ...screens };
}

/** Return what is wrong with files that `manifest.json` lists; nothing where the page may not compute SHA-256. */
async function findDamage(files, manifest) {
  if (!globalThis.crypto?.subtle) return []; // plain HTTP from another machine
  const told = await Promise.all(Object.entries(files).map(async ([name, bytes]) => {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const expected = manifest.files[name]?.sha256;
    return found === expected ? [] : `${name}: its SHA-256 is ${found}, manifest.json says ${expected}`;
  }));
  return told.flat();
}

/** Prove one policy, and tell in its part of the page what came of it. */
async function prove(part) {
  const { policy } = part.dataset, told = part.querySelector(".told"), button = part.querySelector("button");
  const going = part.querySelector(".going"); // what is not read aloud
  const say = (text, kind) =>
    told.append(Object.assign(document.createElement("li"), { textContent: text, className: kind }));
  told.replaceChildren();
  part.querySelector(".shown").replaceChildren();
  button.disabled = true;
  going.textContent = "loads ONNX Runtime and the policy ...";
  try {
    const tools = await loadTools();
    const names = ["policy.onnx", "golden.safetensors", "manifest.json"];
    const [program, golden, listed] = await Promise.all(names.map((name) => load(`${policy}/${name}`)));
    const manifest = JSON.parse(new TextDecoder().decode(listed));
    for (const damage of await findDamage({ "policy.onnx": program, "golden.safetensors": golden }, manifest))
      say(damage, "bad");
    const session = await tools.ort.InferenceSession.create(program, { executionProviders: ["wasm"] });
    await proveGolden(tools, session, golden, say);
    await proveEpisode(tools, session, part, manifest, say);
    await session.release();
  } catch (error) {
    say(error?.message ?? String(error), "bad");
  }
  going.textContent = "";
  button.disabled = false;
  button.textContent = "Prove it again";
}

async function proveGolden({ ort, read, replay, tell }, session, bytes, say) {
  const { tensors } = read(bytes), all = tensors.tie.rows, warm = performance.now() + WARM_UP;
  for await (const _ of replay(ort, session, tensors)) if (performance.now() > warm) break;
  const { right, largest, microseconds, first } = await follow(replay(ort, session, tensors));
  const time = microseconds ? `${count(Math.max(1, microseconds))} us each, ` : ""; // some clocks tell none
  say(`${count(right)} of ${count(all)} decisions as proven, ${time}on this device`, first ? "bad" : "good");
  if (first) say(tell(first), "bad");
  if (first || !largest) return;
  const [allowed] = tensors.tolerance.row(0), most = largest.toExponential(1);
  say(`numbers differ by ${most} at most; ${allowed.toExponential()} is allowed for rounding`, "note");
}

/** Replay a recorded episode while it is drawn. */
async function proveEpisode({ ort, read, replay, tell, decompress, makeScreens }, session, part, manifest, say) {
  const bytes = await load(`${part.dataset.policy}/episode.safetensors.gz`, { optional: true });
  if (!bytes) {
    say("no recorded episode is beside this page", "note");
    return;
  }
  const { tensors, metadata } = read(await decompress(bytes)), all = tensors.tie.rows;
  const draw = makeScreens(part.querySelector(".shown"), session.inputNames, tensors);
  const going = part.querySelector(".going");
  const frames = matchMedia("(prefers-reduced-motion: reduce)").matches ? FRAMES_IF_STILL : MOST_FRAMES;
  const stride = Math.ceil(all / frames), [name] = manifest.action_names ?? ["action"];
  const { right, first } = await follow(replay(ort, session, tensors), async ({ number, made }) => {
    if (number % stride && number + 1 < all) return;
    await nextFrame();
    draw(number);
    going.textContent = `decision ${count(number)}: ${nameAction(made[name].data, manifest)}`;
  });
  const as = metadata.decided === "recorded" ? "as recorded" : "as where this page was made";
  say(`episode: ${count(right)} of ${count(all)} decisions ${as}`, first ? "bad" : "good");
  if (first) say(`episode, ${tell(first)}`, "bad");
}

/** Count the decisions of a replay that are right. */
async function follow(decisions, show = () => {}) {
  let right = 0, largest = 0, first;
  const times = [];
  for await (const decision of decisions) {
    if (decision.difference) first ??= decision;
    else right++;
    largest = Math.max(largest, decision.largest);
    times.push(decision.microseconds);
    await show(decision);
  }
  return { right, largest, first, microseconds: middle(times) };
}

/** Return the mean of the middle half, as some decisions are interrupted; of all where clocks are too coarse for it. */
function middle(times) {
  const half = times.sort((one, other) => one - other).slice(times.length / 4, Math.ceil(times.length * 0.75));
  const mean = (some) => some.reduce((sum, time) => sum + time, 0) / some.length;
  return mean(half) || mean(times);
}

function nameAction(numbers, { actions }) {
  const known = Array.isArray(actions) && actions[Number(numbers[0])]?.name;
  return known || Array.from(numbers, (number) => Number(number).toLocaleString("en-US")).join(", ");
}

const parts = [...section.querySelectorAll("[data-policy]")];
let last = Promise.resolve(); // one after the other, so that each has the processor to itself
const start = (part) => { last = last.then(() => prove(part)); };
const startIfAsked = () => {
  if (location.hash === "#prove" || new URLSearchParams(location.search).has("prove")) parts.forEach(start);
};
if (location.protocol === "file:") {
  section.querySelector(".served").hidden = false;
} else {
  for (const part of parts) {
    const button = part.querySelector("button");
    button.disabled = false;
    button.addEventListener("click", () => start(part));
  }
  addEventListener("hashchange", startIfAsked);
  startIfAsked();
}
