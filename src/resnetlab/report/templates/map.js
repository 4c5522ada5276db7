// Draws the map of the embeddings on a canvas: ten thousand points at once, without WebGL.

const mapPlace = document.getElementById("embedding-map");
if (mapPlace && images.x) {
  const [canvas, said, key] = ["canvas", "[role=status]", ".key"].map((name) => mapPlace.querySelector(name));
  const shownPlaces = places.filter((place) => images.x[place] !== null);
  const context = canvas.getContext("2d");
  const FEW = 30, REACH = 14, NAMED = 10;
  let coloring = "class";
  let hidden = new Set();
  let view = { scale: 1, x: 0.5, y: 0.5 };  // how much closer, and which part of the map is in the middle
  let current = null;

  // Where the points are: in units of the map, from its lower left corner, which is 0 and 0.
  const arrange = (x, y) => {
    const along = (values) => {
      const low = shownPlaces.reduce((least, place) => Math.min(least, values[place]), Infinity);
      return values.map((value) => (value === null ? null : value - low));
    };
    const largest = (values) => shownPlaces.reduce((most, place) => Math.max(most, values[place]), 0) || 1;
    const [across, up] = [along(x), along(y)];
    return { x: across, y: up, span: { x: largest(across), y: largest(up) } };
  };
  let map = arrange(images.x, images.y);

  const classColor = (label) => {
    if (label < NAMED) return color("--class-" + label);
    const lightness = color("color-scheme") === "dark" ? [72, 62, 80] : [38, 48, 30];
    return "hsl(" + ((label * 137.5) % 360) + " 60% " + lightness[label % 3] + "%)";
  };

  const position = (place) => {
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const unit = Math.min((width - 24) / map.span.x, (height - 24) / map.span.y) * view.scale;
    return [
      width / 2 + (map.x[place] - view.x * map.span.x) * unit,
      height / 2 - (map.y[place] - view.y * map.span.y) * unit,
    ];
  };

  const dot = (place, radius) => {
    const [x, y] = position(place);
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
  };

  const isHidden = (place) => coloring === "class" && hidden.has(images.label[place]);
  const draw = () => {
    const ratio = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const radius = Math.min(5, Math.max(1.6, Math.sqrt((width * height) / shownPlaces.length) / 6)) * view.scale ** 0.3;
    const colors = images.names.map((_, label) => classColor(label));
    const [rightColor, wrongColor, faint] = [color("--map-right"), color("--map-wrong"), color("--rule")];
    const marked = isDefault ? null : new Set(chosen);
    // What is to be seen comes last: mistakes over the rest, and the chosen images over all.
    const layers = [[], [], []];
    for (const place of shownPlaces) {
      if (isHidden(place)) continue;
      layers[marked?.has(place) ? 2 : isWrong(place) && coloring === "error" ? 1 : 0].push(place);
    }
    layers.forEach((layer, depth) => {
      for (const place of layer) {
        context.globalAlpha = depth === 2 ? 1 : 0.8;
        context.fillStyle = coloring === "error" ? (isWrong(place) ? wrongColor : rightColor) : colors[images.label[place]];
        if (marked && depth < 2) context.fillStyle = faint;
        dot(place, depth === 2 ? radius * 1.5 : radius);
        context.fill();
        if (depth === 2) {
          context.lineWidth = 1;
          context.strokeStyle = color("--ink");
          context.stroke();
        }
      }
    });
    context.globalAlpha = 1;
    if (current !== null && !isHidden(current)) {
      context.lineWidth = 2;
      context.strokeStyle = color("--ink");
      dot(current, radius + 4);
      context.stroke();
    }
    canvas.style.touchAction = view.scale > 1 ? "none" : "auto";
  };

  // The image under the pointer, or the one that the keyboard chose.
  if (images.thumbnails) tipCanvas.className = images.thumbnails.size < 64 ? "pixelated" : "";
  const settle = () => {
    if (current === null) return;
    const [x, y] = position(current);
    const box = canvas.getBoundingClientRect();
    const [across, down] = [box.left + x, box.top + y];
    tipCanvas.hidden = !images.thumbnails;
    showTip(describe(current), across, down);
    tip.hidden = down < 0 || down > innerHeight;
  };
  const point = (place) => {
    if (place === current) return;
    current = place;
    draw();
    tip.hidden = place === null;
    if (place === null) return;
    if (images.thumbnails) paint(tipCanvas, place);
    settle();
  };
  const nearest = (x, y, reach, isWanted = () => true) => {
    let [found, best] = [null, reach];
    for (const place of shownPlaces) {
      const [pointX, pointY] = position(place);
      const distance = Math.hypot(pointX - x, pointY - y);
      if (distance < best && !isHidden(place) && isWanted(pointX - x, pointY - y)) [found, best] = [place, distance];
    }
    return found;
  };

  const zoom = (factor) => {
    view.scale = Math.min(40, Math.max(1, view.scale * factor));
    if (view.scale === 1) view = { scale: 1, x: 0.5, y: 0.5 };
    else if (current !== null) {
      view.x = map.x[current] / map.span.x;
      view.y = map.y[current] / map.span.y;
    }
    draw();
  };
  let drag = null;
  let isMoved = false;
  canvas.addEventListener("pointerdown", (event) => {
    isMoved = false;
    if (view.scale > 1) drag = { x: event.clientX, y: event.clientY, view: { ...view } };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && event.buttons) {
      const { span } = map;
      const unit = Math.min((canvas.clientWidth - 24) / span.x, (canvas.clientHeight - 24) / span.y) * view.scale;
      view.x = drag.view.x - (event.clientX - drag.x) / unit / span.x;
      view.y = drag.view.y + (event.clientY - drag.y) / unit / span.y;
      isMoved = isMoved || Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 4;
      current = null;
      tip.hidden = true;
      draw();
      return;
    }
    point(nearest(event.offsetX, event.offsetY, REACH));
  });
  addEventListener("pointerup", () => { drag = null; });
  addEventListener("scroll", settle, { passive: true });
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("blur", () => point(null));
  canvas.addEventListener("click", (event) => {
    const place = nearest(event.offsetX, event.offsetY, REACH);
    if (place !== null && !isMoved) choose(images.label[place], images.prediction[place]);
  });

  const DIRECTIONS = {
    ArrowLeft: (x, y) => -x > Math.abs(y), ArrowRight: (x, y) => x > Math.abs(y),
    ArrowUp: (x, y) => -y > Math.abs(x), ArrowDown: (x, y) => y > Math.abs(x),
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Escape") point(null);
    else if (event.key === "Enter" && current !== null) choose(images.label[current], images.prediction[current]);
    else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 1.6 : 1 / 1.6);
    else if (DIRECTIONS[event.key]) {
      event.preventDefault();
      const next = current === null
        ? nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, Infinity)
        : nearest(...position(current), Infinity, DIRECTIONS[event.key]);
      if (next === null) return;
      point(next);
      said.textContent = describe(next).join(", ") + ".";
    }
  });

  const FACTORS = { in: 1.6, out: 1 / 1.6, all: 0 };
  for (const button of mapPlace.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => zoom(FACTORS[button.dataset.zoom]));
  }

  // The key: of classes, buttons that hide and show them; of right and wrong, words.
  const swatch = (background) => {
    const mark = document.createElement("i");
    mark.style.background = background;
    return mark;
  };
  const drawKey = () => {
    key.replaceChildren();
    if (coloring === "error") {
      for (const [name, text] of [["--map-right", "correct"], ["--map-wrong", "wrong"]]) {
        const entry = element("span", text);
        entry.prepend(swatch(color(name)));
        key.append(entry);
      }
    } else if (images.names.length <= FEW) {
      images.names.forEach((name, label) => {
        const button = element("button", name);
        button.type = "button";
        button.setAttribute("aria-pressed", String(!hidden.has(label)));
        button.prepend(swatch(classColor(label)));
        button.addEventListener("click", () => {
          if (!hidden.delete(label)) hidden.add(label);
          button.setAttribute("aria-pressed", String(!hidden.has(label)));
          draw();
        });
        key.append(button);
      });
    } else {
      key.append(element("span", images.names.length.toLocaleString("en") + " classes are too many for a color each. Choose a class above to mark it on the map."));
    }
  };
  const choice = (attribute, chosen) => {
    const buttons = [...mapPlace.querySelectorAll("[data-" + attribute + "]")];
    for (const button of buttons) {
      button.addEventListener("click", () => {
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
        chosen(button.dataset);
        drawKey();
        draw();
      });
    }
  };
  choice("color", (data) => { coloring = data.color; });
  choice("x", (data) => {
    map = arrange(images[data.x], images[data.y]);
    view = { scale: 1, x: 0.5, y: 0.5 };
    point(null);
  });

  const redrawMap = () => { drawKey(); draw(); };
  redraws.push(redrawMap);
  listeners.push(draw);
  new ResizeObserver(draw).observe(canvas);
  redrawMap();
}
