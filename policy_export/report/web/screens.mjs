// What a policy sees, drawn on canvases: images as they are, a few numbers as lines over time, many as bars.

const LEAST = 8; // pixels of an image's side; what is smaller is a table of numbers
const MOST_LINES = 8;
const WINDOW = 200; // decisions that lines go back, at most
const WIDTH = 320, HEIGHT = 120; // of lines and bars

/**
 * Put a canvas for each observation into an element; return a function that draws those of a decision.
 *
 * `inputs` are the names of what the program is given, and `tensors` those of a recorded episode.
 */
export function makeScreens(element, inputs, tensors) {
  const names = inputs.filter((name) => `input/${name}` in tensors && name !== "is_init");
  const draws = names.map((name) => {
    const tensor = tensors[`input/${name}`];
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const canvas = document.createElement("canvas"), layout = imageLayout(tensor.shape);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `what the policy sees as ${name}`);
    caption.textContent = `${name}: ${tensor.shape.join(" x ") || 1} ${tensor.type}`;
    figure.append(canvas, caption);
    element.append(figure);
    return layout ? imageDrawer(canvas, tensor, layout) : numberDrawer(canvas, tensor);
  });
  return (number) => draws.forEach((draw) => draw(number));
}

/** Return how numbers of a shape lie as an image, colours last or first; nothing where they are none. */
function imageLayout(shape) {
  if (shape.length < 2) return undefined;
  const sizes = shape.length > 2 ? shape.slice(-3) : [...shape, 1], last = [1, 3, 4].includes(sizes[2]);
  const [height, width, colours] = last ? sizes : [sizes[1], sizes[2], sizes[0]];
  if (Math.min(height, width) < LEAST) return undefined;
  const [pixel, colour] = last ? [colours, 1] : [1, height * width];
  return { height, width, pixel, colour: colours < 3 ? 0 : colour };
}

function imageDrawer(canvas, { row }, { height, width, pixel, colour }) {
  Object.assign(canvas, { width, height });
  canvas.style.width = `${width * Math.max(1, Math.round(WIDTH / Math.max(width, height)))}px`;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  return (number) => {
    const numbers = row(number), [low, high] = numbers instanceof Uint8Array ? [0, 255] : range(numbers);
    for (let at = 0; at < height * width; at++) {
      for (let part = 0; part < 3; part++)
        image.data[4 * at + part] = 255 * (Number(numbers[at * pixel + part * colour]) - low) / (high - low || 1);
      image.data[4 * at + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  };
}

function numberDrawer(canvas, { type, row, rows }) {
  const scale = globalThis.devicePixelRatio || 1, context = canvas.getContext("2d");
  Object.assign(canvas, { width: WIDTH * scale, height: HEIGHT * scale });
  canvas.style.width = `${WIDTH}px`;
  context.scale(scale, scale);
  const all = Array.from({ length: rows }, (_, number) => Array.from(row(number), Number)), each = all[0].length;
  return (each > MOST_LINES || type === "bool" ? barDrawer : lineDrawer)(context, all, each);
}

function lineDrawer(context, all, each) {
  const ranges = Array.from({ length: each }, (_, place) => range(all.map((numbers) => numbers[place])));
  const step = WIDTH / Math.max(1, Math.min(WINDOW, all.length) - 1);
  return (number) => {
    const from = Math.max(0, number - WINDOW + 1);
    context.clearRect(0, 0, WIDTH, HEIGHT);
    context.lineWidth = 1.5;
    for (let place = 0; place < each; place++) {
      context.strokeStyle = paint(place / each);
      context.beginPath();
      for (let at = from; at <= number; at++)
        context.lineTo(step * (at - from), across(all[at][place], ranges[place]));
      context.stroke();
    }
  };
}

function barDrawer(context, all, each) {
  const limits = range([0, ...all.flatMap(range)]);
  const zero = across(0, limits), width = WIDTH / each;
  return (number) => {
    context.clearRect(0, 0, WIDTH, HEIGHT);
    context.fillStyle = paint(0);
    all[number].forEach((value, place) => {
      const top = across(value, limits);
      context.fillRect(width * place, Math.min(top, zero), Math.max(1, width - 1), Math.max(1, Math.abs(top - zero)));
    });
  };
}

const across = (value, [low, high]) => HEIGHT - 4 - (HEIGHT - 8) * (high > low ? (value - low) / (high - low) : 0.5);
const paint = (share) => `hsl(${Math.round(210 + 360 * share)} 65% 52%)`;
const range = (numbers) => numbers.reduce(
  ([low, high], number) => [Math.min(low, Number(number)), Math.max(high, Number(number))], [Infinity, -Infinity]);
