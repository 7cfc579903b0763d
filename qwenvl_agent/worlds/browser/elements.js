// What can be clicked in the viewport, as elements.py explains. Lengths are CSS px from the viewport's top left corner.
// The answer is [facts as JSON, nodes]: `node` of an element or a group is its place in the nodes, which elements.py looks
// up in the browser's own accessibility tree.
async () => {
  const INTERACTIVE = [
    'a[href]', 'button', 'input:not([type=hidden])', 'select', 'textarea', 'summary', '[contenteditable=""]',
    '[contenteditable=true]', '[onclick]', '[tabindex]:not([tabindex="-1"])',
    ...['button', 'link', 'checkbox', 'radio', 'switch', 'tab', 'menuitem', 'menuitemcheckbox', 'menuitemradio',
        'option', 'textbox', 'searchbox', 'combobox', 'slider', 'spinbutton', 'treeitem'].map(r => `[role=${r}]`),
  ].join(',');
  const PICTURE = 'img,[role=img]';
  const GROUP = 'tr,article,figure,fieldset,form,dialog,nav,header,footer,aside,section[aria-label],' +
    ['dialog', 'group', 'menu', 'tablist', 'navigation', 'listitem'].map(role => `[role=${role}]`).join(',');
  const TITLE = 'th[scope=row],legend,figcaption,caption,h1,h2,h3,h4,h5,h6,[class~=title]';
  const SLIVER = 0.1;  // an element of which less is left counts as covered
  const COARSE = 24, FINE = 40;  // px between the first samples; samples a side where something lies over an element
  // Of hit boxes, in px: from a side that is looked at (nearer to the viewport's own, elementFromPoint finds nothing); to
  // which sides are searched; of a corner that may be cut off unseen; height of the rows that follow round corners.
  const RIM = 1, EXACT = 0.1, CORNER = 3, ROW = 4;

  const width = document.documentElement.clientWidth, height = document.documentElement.clientHeight;
  const isPicture = e => e.matches(PICTURE) && !e.closest(INTERACTIVE);
  const candidates = [...document.querySelectorAll(`${INTERACTIVE},${PICTURE}`)].filter(
    e => (e.matches(INTERACTIVE) || isPicture(e)) && e.checkVisibility({opacityProperty: true, visibilityProperty: true}));
  const owned = new Map([[null, null]]);
  const owner = e => {
    if (!owned.has(e)) owned.set(e, e.closest(INTERACTIVE) || (e.matches(PICTURE) ? e : null));
    return owned.get(e);
  };
  const text = e => (e.innerText ?? '').replace(/\s+/g, ' ').trim();

  // A piece is a rectangle of an element; an inline element has one a line, and those of the pictures in it.
  const piecesOf = e => {
    const isInline = getComputedStyle(e).display === 'inline';
    const owners = isInline ? [e, ...e.querySelectorAll('img,svg,canvas,video')] : [e];
    return owners.flatMap(o => [...o.getClientRects()].map(rect => ({rect, owner: o})));
  };
  const pieces = new Map(candidates.map(e => [e, piecesOf(e)]));
  const owners = new Set([...pieces.values()].flat().map(piece => piece.owner));
  // What the browser itself says is left of each after the viewport and every scrolling or clipping ancestor.
  const shown = await new Promise(resolve => {
    const found = new Map();
    if (!owners.size) return resolve(found);
    const observer = new IntersectionObserver(entries => {
      for (const entry of entries) found.set(entry.target, entry.intersectionRect);
      if (found.size === owners.size) { observer.disconnect(); resolve(found); }
    });
    owners.forEach(o => observer.observe(o));
  });
  const cut = (rect, other) => {
    const left = Math.max(rect.left, other.left, 0), top = Math.max(rect.top, other.top, 0);
    const right = Math.min(rect.right, other.right, width), bottom = Math.min(rect.bottom, other.bottom, height);
    return right - left > 1 && bottom - top > 1 ? {left, top, right, bottom} : null;
  };

  // 1: a click there reaches the element; 0: it reaches something else;
  // -1: it falls through to what the element stands in (a rounded corner), so nothing lies over it.
  const probe = (e, x, y) => {
    const hit = document.elementFromPoint(x, y);
    if (owner(hit) === e) return 1;
    return hit && hit !== e && hit.contains(e) ? -1 : 0;
  };
  const sample = (e, area, columns, rows) => {
    const grid = [], stepX = (area.right - area.left) / columns, stepY = (area.bottom - area.top) / rows;
    for (let j = 0; j < rows; j++) {
      const line = [];
      for (let i = 0; i < columns; i++) line.push(probe(e, area.left + (i + 0.5) * stepX, area.top + (j + 0.5) * stepY));
      grid.push(line);
    }
    return grid;
  };
  // The largest rectangle of cells that are not covered: [left, top, right, bottom] in cells.
  const largest = grid => {
    const columns = grid[0].length, heights = new Array(columns).fill(0);
    let best = [0, 0, 0, 0], bestArea = 0;
    grid.forEach((line, row) => {
      line.forEach((value, i) => { heights[i] = value === 0 ? 0 : heights[i] + 1; });
      for (let from = 0; from < columns; from++) {
        let low = Infinity;
        for (let to = from; to < columns && heights[to]; to++) {
          low = Math.min(low, heights[to]);
          if (low * (to - from + 1) > bestArea) {
            bestArea = low * (to - from + 1);
            best = [from, row - low + 1, to + 1, row + 1];
          }
        }
      }
    });
    return bestArea ? best : null;
  };
  // Moves each side outwards by less than a cell, as far as its corners and its middle are not covered.
  const grow = (e, box, area, stepX, stepY) => {
    const isFree = points => points.every(([x, y]) => probe(e, x, y) !== 0);
    const sides = {
      left: v => [[v, box.top + 0.5], [v, (box.top + box.bottom) / 2], [v, box.bottom - 0.5]],
      top: v => [[box.left + 0.5, v], [(box.left + box.right) / 2, v], [box.right - 0.5, v]],
    };
    sides.right = sides.left; sides.bottom = sides.top;
    for (const [side, sign, step] of [['left', -1, stepX], ['top', -1, stepY], ['right', 1, stepX], ['bottom', 1, stepY]]) {
      const limit = sign < 0 ? Math.max(area[side], box[side] - step) : Math.min(area[side], box[side] + step);
      let good = box[side], bad = limit;
      if (isFree(sides[side](limit - sign * 0.5))) good = limit;
      while (Math.abs(bad - good) > 0.5) {
        const middle = (good + bad) / 2;
        if (isFree(sides[side](middle))) good = middle; else bad = middle;
      }
      box[side] = good;
    }
    return box;
  };
  const areaOf = r => Math.max(0, r.right - r.left) * Math.max(0, r.bottom - r.top);
  const union = rects => ({
    left: Math.min(...rects.map(r => r.left)), top: Math.min(...rects.map(r => r.top)),
    right: Math.max(...rects.map(r => r.right)), bottom: Math.max(...rects.map(r => r.bottom)),
  });
  // The point of a box where a click reaches the element: its middle, or the sample that is nearest to it.
  const pointIn = (e, box) => {
    const x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2;
    if (probe(e, x, y) === 1) return [x, y];
    let best = null, bestDistance = Infinity;
    sample(e, box, 9, 9).forEach((line, j) => line.forEach((value, i) => {
      const px = box.left + (i + 0.5) * (box.right - box.left) / 9, py = box.top + (j + 0.5) * (box.bottom - box.top) / 9;
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (value === 1 && distance < bestDistance) { best = [px, py]; bestDistance = distance; }
    }));
    return best;
  };
  const border = (isHit, from, to, exact = EXACT) => {
    const isFirstHit = isHit(from);
    while (Math.abs(to - from) > exact) {
      const middle = (from + to) / 2;
      if (isHit(middle) === isFirstHit) from = middle; else to = middle;
    }
    return (from + to) / 2;
  };
  // Sides of the columns of a grid, each where hits begin or end beside it. `hits[i][j]`: column i, row j.
  const sidesOf = (hits, start, end, isHitAt) => {
    const step = (end - start) / hits.length;
    const places = [start + RIM, ...hits.map((_, i) => start + (i + 0.5) * step), end - RIM];
    const middleOf = rows => rows[rows.length >> 1];
    const rim = (place, column) => {
      const row = middleOf([...column.keys()].filter(j => column[j]));
      return column.map((isHit, j) => j === row ? isHitAt(place, j) : isHit);
    };
    const columns = [rim(places[0], hits[0]), ...hits, rim(places.at(-1), hits.at(-1))];
    return columns.slice(1).map((column, i) => {
      const row = middleOf([...column.keys()].filter(j => column[j] !== columns[i][j]));
      return row === undefined ? start + i * step : border(v => isHitAt(v, row), places[i], places[i + 1]);
    });
  };
  // Rectangles in whose union a click reaches the element: runs of cells, joined with equal ones of the row above.
  const hitsIn = (e, area, grid) => {
    const hits = grid.map(line => line.map(value => value === 1));
    const stepX = (area.right - area.left) / hits[0].length, stepY = (area.bottom - area.top) / hits.length;
    const columns = hits[0].map((_, i) => hits.map(line => line[i]));
    const xs = sidesOf(columns, area.left, area.right, (x, j) => probe(e, x, area.top + (j + 0.5) * stepY) === 1);
    const ys = sidesOf(hits, area.top, area.bottom, (y, i) => probe(e, area.left + (i + 0.5) * stepX, y) === 1);
    const boxes = [];
    let above = [];
    hits.forEach((line, j) => {
      const runs = [];
      for (let from = 0, to; from < line.length; from = to + 1) {
        for (to = from; line[to]; to++);
        if (to === from) continue;
        const same = above.find(run => run.left === xs[from] && run.right === xs[to]);
        const run = same ?? {left: xs[from], top: ys[j], right: xs[to]};
        run.bottom = ys[j + 1];
        if (!same) boxes.push(run);
        runs.push(run);
      }
      above = runs;
    });
    return boxes;
  };
  // The same for an area over which no sample found anything: strips along its sides and round corners are cut off.
  const freeHitsIn = (e, area, grid) => {
    const isHit = (x, y) => probe(e, x, y) === 1;
    const x = (area.left + area.right) / 2, y = (area.top + area.bottom) / 2;
    if (!isHit(x, y)) return hitsIn(e, area, grid);
    const from = (side, inwards, middle, isHitAt) =>
      isHitAt(side + inwards * RIM) ? side : border(isHitAt, side + inwards * RIM, middle);
    const [left, right] = [from(area.left, 1, x, v => isHit(v, y)), from(area.right, -1, x, v => isHit(v, y))];
    const [top, bottom] = [from(area.top, 1, y, v => isHit(x, v)), from(area.bottom, -1, y, v => isHit(x, v))];
    const box = {left, top, right, bottom};
    const isRound = [box.left + CORNER, box.right - CORNER].some(
      v => !isHit(v, box.top + CORNER) || !isHit(v, box.bottom - CORNER));
    if (!isRound) return [box];
    const rows = [];
    const follow = (start, inwards) => {
      let edge = start, ends = [x, x];  // a round corner reaches less far in from row to row
      for (; (y - edge) * inwards > ROW; edge += inwards * ROW) {
        const isHitAt = v => isHit(v, edge + inwards * ROW / 2);
        if (isHitAt(left + RIM) && isHitAt(right - RIM)) break;
        ends = [border(isHitAt, left + RIM, ends[0], 1), border(isHitAt, right - RIM, ends[1], 1)];
        const next = edge + inwards * ROW;
        rows.push({left: ends[0], right: ends[1], top: Math.min(edge, next), bottom: Math.max(edge, next)});
      }
      return edge;
    };
    return [{...box, top: follow(box.top, 1), bottom: follow(box.bottom, -1)}, ...rows];
  };
  // {box, point, visible, hit_boxes}: what can be seen and clicked of an element, null if nothing can.
  const regionOf = e => {
    const all = pieces.get(e), whole = all.reduce((sum, piece) => sum + areaOf(piece.rect), 0);
    const seen = all.map(piece => cut(piece.rect, shown.get(piece.owner))).filter(Boolean);
    const parts = [];
    let covered = false;
    for (const area of seen) {
      const columns = Math.max(3, Math.ceil((area.right - area.left) / COARSE));
      const rows = Math.max(3, Math.ceil((area.bottom - area.top) / COARSE));
      let grid = sample(e, area, columns, rows);
      const isFree = !grid.flat().includes(0);
      if (isFree) { parts.push({box: area, share: areaOf(area), hits: freeHitsIn(e, area, grid)}); continue; }
      covered = true;
      if (!grid.flat().includes(1)) continue;
      const fineColumns = Math.max(columns, Math.min(FINE, Math.ceil((area.right - area.left) / 4)));
      const fineRows = Math.max(rows, Math.min(FINE, Math.ceil((area.bottom - area.top) / 4)));
      grid = sample(e, area, fineColumns, fineRows);
      const hits = hitsIn(e, area, grid);
      const cells = largest(grid);
      if (!cells) continue;
      const stepX = (area.right - area.left) / fineColumns, stepY = (area.bottom - area.top) / fineRows;
      const box = {left: area.left + cells[0] * stepX, top: area.top + cells[1] * stepY,
                   right: area.left + cells[2] * stepX, bottom: area.top + cells[3] * stepY};
      parts.push({box: grow(e, box, area, stepX, stepY), share: areaOf(area) * grid.flat().filter(v => v !== 0).length / grid.flat().length, hits});
    }
    if (!parts.length || !whole) return null;
    const visible = Math.min(1, parts.reduce((sum, part) => sum + part.share, 0) / whole);
    if (visible < SLIVER) return null;
    const biggest = parts.reduce((a, b) => areaOf(b.box) > areaOf(a.box) ? b : a).box;
    const point = pointIn(e, biggest);
    if (!point) return null;
    const hitBoxes = parts.flatMap(part => part.hits), [x, y] = point;
    if (!hitBoxes.some(b => b.left <= x && x < b.right && b.top <= y && y < b.bottom)) {
      hitBoxes.push({left: x - 0.5, top: y - 0.5, right: x + 0.5, bottom: y + 0.5});
    }
    return {box: covered ? biggest : union(parts.map(part => part.box)), point, visible, hit_boxes: hitBoxes};
  };

  const isSeen = e => {
    const rect = e && e.getClientRects()[0];
    if (!rect) return false;
    const hit = document.elementFromPoint((rect.left + rect.right) / 2, (rect.top + rect.bottom) / 2);
    return !!hit && (e === hit || e.contains(hit));
  };
  const nodes = new Map();
  const nodeIndex = e => {
    if (!nodes.has(e)) nodes.set(e, nodes.size);
    return nodes.get(e);
  };
  const groups = [], groupIndex = new Map();
  const groupOf = e => {
    const node = e.parentElement && e.parentElement.closest(GROUP);
    if (!node) return -1;
    if (!groupIndex.has(node)) {
      const title = [...node.querySelectorAll(TITLE)].find(t => !owner(t));
      const parent = groupOf(node);  // before this one's own place: it may be new, too
      groupIndex.set(node, groups.length);
      groups.push({node: nodeIndex(node), title: title ? text(title) : '', is_title_seen: isSeen(title), parent});
    }
    return groupIndex.get(node);
  };
  const stateOf = e => ({
    disabled: e.disabled === true || e.getAttribute('aria-disabled') === 'true',
    checked: e.checked === true || e.getAttribute('aria-checked') === 'true',
    selected: e.getAttribute('aria-selected') === 'true' || !!e.getAttribute('aria-current'),
    expanded: e.getAttribute('aria-expanded') === 'true' || (e.matches('summary') && e.parentElement.open === true),
    focused: document.activeElement === e,
  });
  const describe = e => {
    const picture = e.matches('img') ? e : e.querySelector('img');
    const label = e.labels?.[0] ?? document.getElementById(e.getAttribute('aria-labelledby') ?? '');
    const isField = e.matches('input,textarea,select');
    return {
      text: isField ? '' : text(e),
      value: e.matches('select') ? (e.selectedOptions[0]?.text ?? '') : e.matches('input[type=password]') ? '' :
        e.matches('input:not([type=checkbox]):not([type=radio]),textarea') ? e.value : '',
      placeholder: isField && !e.value ? (e.placeholder ?? '') : '',
      label: label ? [...label.childNodes].map(n => n === e ? '' : n.nodeType === 3 ? n.data : n.contains?.(e) ? '' : text(n)).join(' ').trim() : '',
      is_label_seen: !!label && isSeen([...label.children].find(child => !child.contains(e)) ?? label),
      group: groupOf(e),
      picture: picture ? (picture.dataset.picture ?? '') : '',
      picture_text: picture ? (picture.alt ?? '') : '',
      backdrop: picture ? (picture.dataset.backdrop ?? '') : '',
      icon: e.dataset.icon ?? '',
      intent: e.dataset.intent ?? '',
      item: e.dataset.item ?? '',
      item_picture: e.dataset.itemPicture ?? '',
      background: getComputedStyle(e).backgroundColor,
      state: Object.entries(stateOf(e)).filter(([, on]) => on).map(([name]) => name),
    };
  };
  const elements = [];
  let hidden = 0;
  for (const e of candidates) {
    if (!pieces.get(e).some(piece => cut(piece.rect, shown.get(piece.owner)))) continue;
    const region = regionOf(e);
    if (!region) { hidden++; continue; }
    elements.push({node: nodeIndex(e), ...describe(e), ...region});
  }
  const facts = {elements, groups, hidden, width, height, scale: devicePixelRatio};
  return [JSON.stringify(facts), [...nodes.keys()]];
}
