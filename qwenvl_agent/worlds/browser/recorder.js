// What a person does on a page, told as it happens; recorder.py explains. Runs in every frame before the page's own scripts.
// REPORT and STATE stand for names that no page knows. Lengths are CSS px from the frame's top left corner.
(() => {
  if (globalThis.STATE) return;
  const CLICKABLE = 'a[href],button,input,select,textarea,summary,label,option,img,video,canvas,[role],[onclick],[tabindex],[contenteditable=""],[contenteditable=true]';
  const CHANGES = ['scroll', 'resize', 'load', 'transitionend', 'animationend', 'focusin', 'focusout', 'toggle', 'input', 'change'];
  const MODIFIERS = new Set(['Control', 'Shift', 'Alt', 'Meta', 'AltGraph', 'CapsLock', 'NumLock', 'Fn']);
  const CARET_KEYS = new Set(['ArrowLeft', 'ArrowRight', 'ArrowUp', 'ArrowDown', 'Home', 'End']);
  const UNTYPED = new Set(['button', 'checkbox', 'color', 'file', 'hidden', 'image', 'radio', 'range', 'reset', 'submit']);
  const SECRET = /password|cc-|one-time-code/;
  const MAX_NAME = 200;

  const documentId = Math.random().toString(36).slice(2);
  let version = 0, changedAt = performance.now();
  let places = new WeakMap();  // element -> its rectangle when the last picture was taken
  const changed = () => { version++; changedAt = performance.now(); };
  const observer = new MutationObserver(changed);
  observer.observe(document, {subtree: true, childList: true, characterData: true, attributes: true});
  for (const name of CHANGES) addEventListener(name, changed, {capture: true, passive: true});

  const rectangle = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const all = root => [...root.querySelectorAll('*')].flatMap(e => e.shadowRoot ? [e, ...all(e.shadowRoot)] : [e]);
  const state = () => {
    if (observer.takeRecords().length) changed();
    return {document: documentId, version, quiet: performance.now() - changedAt, isLoaded: document.readyState === 'complete', url: location.href, title: document.title};
  };
  const look = () => {
    places = new WeakMap();
    for (const e of all(document)) {
      const place = rectangle(e);
      if (place[2] > place[0] && place[3] > place[1] && e.checkVisibility({opacityProperty: true, visibilityProperty: true})) places.set(e, place);
    }
    return state();
  };
  Object.defineProperty(globalThis, 'STATE', {value: {state, look}});

  const about = node => {
    const e = node.closest?.(CLICKABLE) ?? (node instanceof Element ? node : document.documentElement);
    const isPage = e === document.documentElement || e === document.body;
    const box = rectangle(e), before = places.get(e);
    const label = e.labels?.[0]?.innerText ?? '';
    const name = e.getAttribute('aria-label') || e.getAttribute('alt') || label || (e.matches('input,select,textarea') ? e.placeholder || '' : e.innerText) || e.title || '';
    return {
      role: e.getAttribute('role') ?? e.localName, name: isPage ? '' : name.replace(/\s+/g, ' ').trim().slice(0, MAX_NAME), box: isPage ? null : box,
      isPlaced: isPage || (!!before && before.every((v, i) => Math.abs(v - box[i]) <= 1)),
    };
  };
  const moment = () => {
    if (observer.takeRecords().length) changed();
    return {document: documentId, version, time: performance.timeOrigin + performance.now()};
  };
  const tell = (type, values) => globalThis.REPORT({type, ...values});
  const listen = (name, work) => addEventListener(name, event => { if (event.isTrusted) work(event, event.composedPath()[0]); }, {capture: true, passive: true});

  // The mouse.
  listen('pointerdown', (event, node) => {
    typing = null;
    const isBar = node === document.documentElement && (event.clientX >= node.clientWidth || event.clientY >= node.clientHeight);
    if (!isBar) tell('press', {button: event.button, x: event.clientX, y: event.clientY, ...about(node), ...moment()});
  });
  const release = event => { tell('release', {x: event.clientX, y: event.clientY, ...moment()}); changed(); };
  listen('pointerup', release);
  listen('dragend', release);
  listen('wheel', event => {
    typing = null;
    if (!event.ctrlKey) tell('wheel', {x: event.clientX, y: event.clientY, right: event.deltaX, down: event.deltaY, ...moment()});
    changed();
  });
  listen('change', (event, node) => {
    if (node.matches('select')) tell('choice', {text: [...node.selectedOptions].map(o => o.text).join(', '), ...about(node), ...moment()});
  });

  // The keyboard. A field's text is told as what it became, so that corrections, pasting and input methods count as typing.
  let typing = null, number = 0;
  const fieldOf = node => {
    if (node.matches?.('textarea,input') && !UNTYPED.has(node.type)) return node;
    return node.isContentEditable ? node.closest('[contenteditable=""],[contenteditable=true],[contenteditable=plaintext-only]') ?? node : null;
  };
  const valueOf = field => field.matches('input,textarea') ? field.value : field.innerText;
  const begin = field => {
    if (typing?.field === field) return;
    const before = valueOf(field), start = field.selectionStart ?? before.length, end = field.selectionEnd ?? before.length;
    typing = {field, id: ++number, before, start, end, told: {...about(field), ...moment()}};
  };
  // {text}: what was typed where the caret or the selection was; isWhole: it is the whole text, as more was deleted.
  const typed = ({before, start, end}, value) => {
    const head = before.slice(0, start), tail = before.slice(end);
    const isInside = value.length >= head.length + tail.length && value.startsWith(head) && value.endsWith(tail);
    return isInside ? {text: value.slice(head.length, value.length - tail.length), isWhole: false} : {text: value, isWhole: true};
  };
  listen('beforeinput', (event, node) => { const field = fieldOf(node); if (field) begin(field); });
  listen('compositionstart', (event, node) => { const field = fieldOf(node); if (field) begin(field); });
  listen('input', (event, node) => {
    if (!typing || fieldOf(node) !== typing.field) return;
    const isSecret = typing.field.type === 'password' || SECRET.test(typing.field.autocomplete ?? '');
    const became = isSecret ? {text: '', isWhole: false} : typed(typing, valueOf(typing.field));
    const isEmptied = !isSecret && valueOf(typing.field) !== typing.before && became.text === '';
    tell('typing', {id: typing.id, ...became, isEmptied, isSecret, ...typing.told});
  });
  listen('focusout', (event, node) => { if (typing?.field === fieldOf(node)) typing = null; });
  listen('keydown', (event, node) => {
    if (event.isComposing || MODIFIERS.has(event.key)) return;
    const isChord = (event.ctrlKey || event.metaKey || event.altKey) && !event.getModifierState('AltGraph');
    const isCharacter = event.key.length === 1 && !isChord;
    const field = fieldOf(node), isMany = field && !field.matches('input');
    if (field) {
      const edits = ['Backspace', 'Delete', 'Process', 'Unidentified', 'Dead'].includes(event.key) || (isMany && event.key === 'Enter');
      const pastes = (event.ctrlKey || event.metaKey) && ['v', 'x', 'z', 'y'].includes(event.key.toLowerCase());
      if (isCharacter || (edits && !isChord) || pastes) { begin(field); return; }
      if (typing?.field === field && CARET_KEYS.has(event.key)) return;
    } else if (isCharacter && !(event.key === ' ' && node.matches?.('button,summary,input,select,[role]'))) {
      tell('characters', {text: event.key, ...moment()}); changed();
      return;
    }
    typing = null;
    if (event.repeat) return;
    const held = [['ctrl', event.ctrlKey], ['alt', event.altKey], ['meta', event.metaKey], ['shift', event.shiftKey && !isCharacter]];
    tell('key', {keys: [...held.filter(([, is]) => is).map(([name]) => name), event.key], ...moment()});
    changed();
  });
})();
