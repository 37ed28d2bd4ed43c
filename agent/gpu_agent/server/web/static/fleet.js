// The whole script of the fleet page. The server renders; this patches what changes, opens dialogs, says when the
// registry is lost, and keeps the reader's place. Without it filters, links and actions work all the same.
'use strict';
const $ = (s, at = document) => at.querySelector(s), $$ = (s, at = document) => [...at.querySelectorAll(s)];
const SILENT_MS = 12000;      // the stream says at least every 5 s that it is alive
const LONGEST_WAIT_S = 15;
const main = () => $('#main');
const clock = (at = new Date()) => at.toISOString().slice(11, 19);

// --- Announcements: one polite line, at most one in 10 s
let saidAt = 0, unsaid = [], saying = 0;
function announce(text) {
  unsaid.push(text);
  saying ||= setTimeout(() => {
    $('#say').textContent = unsaid.length > 3 ? `${unsaid.length} changes` : unsaid.join('. ');
    [unsaid, saidAt, saying] = [[], Date.now(), 0];
  }, Math.max(0, saidAt + 10000 - Date.now()));
}

// --- Patches: an element by its id, cell by cell where it is a row; never one that has the focus
function element(html) {
  const fresh = document.createElement('template');
  fresh.innerHTML = html;       // the server's own fragment, escaped there
  return fresh.content.firstElementChild;
}
function patch(id, html) {
  const old = document.getElementById(id), next = element(html);
  if (!old || !next || old.outerHTML === next.outerHTML) return;
  if (next.dataset.say && next.dataset.say !== old.dataset.say) announce(next.dataset.say);
  if (old.tagName !== 'TR' || old.children.length !== next.children.length) {
    if (!old.contains(document.activeElement)) old.replaceWith(next);
    return;
  }
  [...old.children].forEach((cell, i) => {
    const fresh = next.children[i];
    if (cell.outerHTML === fresh.outerHTML || cell.contains(document.activeElement)) return;
    if (cell.innerHTML !== fresh.innerHTML) cell.replaceChildren(...fresh.childNodes);
    cell.className = fresh.className;
  });
  if (old.dataset.sev !== next.dataset.sev) next.classList.add('changed');
  for (const { name, value } of [...next.attributes]) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
}

// --- The same page again, from the server: after a loss, a hidden tab, or when its order has changed
let loading = null;
async function reload() {
  loading?.abort();
  loading = new AbortController();
  const answer = await fetch(location.href, { signal: loading.signal, headers: { Accept: 'text/html' } });
  if (answer.redirected) return void location.assign(answer.url);
  if (answer.status === 404) return void location.reload();     // what the page was about is gone: say so
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html');
  if (fresh.body.dataset.build !== document.body.dataset.build) return void location.reload();
  const at = document.activeElement, focus = at?.id ? `#${at.id}` : field(at), top = scrollY;
  const typed = typed_fields(), opened = $('#filter details')?.open;
  for (const part of ['.top nav', '.who', '#main']) $(part).replaceWith($(part, fresh));
  prepare();
  for (const [name, state] of typed) Object.assign($(name) ?? {}, state);
  if (opened && $('#filter details')) $('#filter details').open = true;
  scrollTo(0, top);
  if (focus) $(focus)?.focus({ preventScroll: true });
}
function field(one) {           // how a field of a form is found again; the names are the server's
  return one?.form?.id && one.name ? `#${one.form.id} [name=${one.name}]` : '';
}
function typed_fields() {       // what the reader has filled in and not sent
  return $$('#main input:not([type=hidden]), #main select').filter(field)
    .filter(one => one.options ? !one.selectedOptions[0]?.defaultSelected : one.value !== one.defaultValue || one.checked !== one.defaultChecked)
    .map(one => [field(one), one.type === 'checkbox' ? { checked: one.checked } : { value: one.value }]);
}

// --- The stream of what changes
let stream = null, since = '', heardAt = 0, watchdog = 0;
function open() {
  const page = main()?.dataset;
  if (!page?.live || stream || document.hidden) return;
  const query = new URLSearchParams(location.search);
  query.set('page', page.live);
  query.set('since', since || page.since);
  query.set('order', page.order);
  if (page.node) query.set('node_id', page.node);
  stream = new EventSource(`/web/stream?${query}`);
  heardAt = Date.now();
  stream.onerror = () => lose();
  for (const [name, take] of Object.entries({ alive: () => {}, parts: take_parts, order: show_order }))
    stream.addEventListener(name, e => { heard(); if (e.lastEventId) since = e.lastEventId; take(e.data); });
  watchdog ||= setInterval(() => { if (stream && Date.now() - heardAt > SILENT_MS) lose(); }, 2000);
}
function close() {
  stream?.close();
  stream = null;
}
function heard() {
  [heardAt, tries, isFull] = [Date.now(), 0, false];
  const live = $('#live');
  if (live.classList.contains('still')) live.classList.remove('still');
  live.firstElementChild.innerHTML = `Live · <time datetime="${new Date().toISOString()}">${clock()}</time> UTC`;
}
function take_parts(data) {
  for (const [id, html] of Object.entries(JSON.parse(data))) patch(id, html);
  freshen();
  count_newer();
}
function count_newer() {        // of a list whose rows stay: what came since waits until it is asked for
  const button = $('#newer-show'), newest = $('#newer')?.dataset;
  if (!button || !newest) return;
  const ids = newest.ids.split(' '), count = ids.filter(id => Number(id) > Number(button.dataset.until)).length;
  button.hidden = !count;
  button.textContent = `${count}${newest.more && count === ids.length ? ' or more' : ''} new: show`;
}
function show_order() {
  if (main().dataset.node) return void location.reload();       // GPUs came or went, or the node is gone
  const button = $('#resort');
  if (!button || !button.hidden) return;
  button.hidden = false;
  announce('The order of the list has changed');
}

// --- The registry is lost: say so, grey the figures, come back by itself
let lostAt = null, wait = 0, tries = 0, ticking = 0, isFull = false;    // tries: until a stream is heard
function lose() {
  close();
  if (lostAt === null) {
    lostAt = new Date(heardAt);
    const since = $('#lost-since');
    since.textContent = clock(lostAt);
    since.dateTime = lostAt.toISOString();
  }
  wait = Math.min(LONGEST_WAIT_S, 2 ** tries++);
  if (tries > 1) show_lost(true);       // a registry that restarts, or a leader that changes, is back at once
  clearInterval(ticking);
  ticking = setInterval(() => { if (--wait <= 0) retry(); else count(); }, 1000);
  count();
}
function count() { $('#lost-next').textContent = `Next try in ${wait} s.`; }
function show_lost(yes) {
  $('#lost').hidden = !yes;
  $('#lost-why').textContent = isFull ? 'Too many pages are open: close one. Not live since' : 'The registry has not answered since';
  document.body.classList.toggle('stale', yes);
  if (yes) $('#live').firstElementChild.textContent = 'Not live';
  for (const action of $$('[data-dialog], #main button:not([type=button])')) {
    if (action.tagName === 'BUTTON') action.disabled = yes;
    else yes ? action.setAttribute('aria-disabled', 'true') : action.removeAttribute('aria-disabled');
  }
}
async function retry() {
  clearInterval(ticking);
  $('#lost-next').textContent = 'Trying now …';
  try {
    const answer = await fetch('/web/session', { signal: AbortSignal.timeout(5000) });
    if (answer.status === 401) return void location.assign(`/signin?ended=1&next=${encodeURIComponent(location.pathname + location.search)}`);
    isFull = answer.status === 429;
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    await reload();
  } catch {
    return lose();
  }
  const was_shown = !$('#lost').hidden;
  [lostAt, since] = [null, ''];
  show_lost(false);
  if (was_shown) announce('The registry answers again');
  open();
}
$('#lost-try')?.addEventListener('click', () => { wait = 0; retry(); });
document.addEventListener('visibilitychange', () => {
  if (document.hidden) { close(); clearInterval(ticking); }
  else if (main()?.dataset.live) retry();
});
addEventListener('pagehide', close);
addEventListener('pageshow', e => { if (e.persisted && main()?.dataset.live) retry(); });

// --- Dialogs: the page of an action, fetched when it is asked for; the opener gets the focus back
document.addEventListener('click', async e => {
  const opener = e.target.closest('a[data-dialog]');
  if (!opener || e.ctrlKey || e.metaKey || e.shiftKey) return;
  e.preventDefault();
  if (opener.getAttribute('aria-disabled') === 'true') return;
  let body;
  try {
    const answer = await fetch(opener.href);
    if (answer.redirected || !answer.ok) return void location.assign(opener.href);
    body = $('[data-dialog-body]', new DOMParser().parseFromString(await answer.text(), 'text/html'));
  } catch {
    return lose();
  }
  if (!body) return void location.assign(opener.href);
  const dialog = document.createElement('dialog');
  dialog.setAttribute('aria-labelledby', $('h1, h2', body)?.id || '');
  dialog.append(body);
  document.body.append(dialog);
  dialog.addEventListener('close', () => { dialog.remove(); (document.getElementById(opener.id) || opener).focus(); });
  dialog.showModal();
  $('input:not([type=hidden]), select, textarea, button', dialog)?.focus();
});
document.addEventListener('click', e => {
  const dialog = e.target.closest('[data-cancel]')?.closest('dialog');
  if (!dialog) return;
  e.preventDefault();
  dialog.close();
});
document.addEventListener('input', e => {
  const wanted = e.target.dataset?.match;
  if (wanted) e.target.setCustomValidity(e.target.value.trim() === wanted ? '' : `Type ${wanted}`);
});
document.addEventListener('submit', e => {
  const twice = e.target.dataset.sent;
  if (twice) e.preventDefault();
  else if (e.target.method === 'post') e.target.dataset.sent = '1';
});
addEventListener('pageshow', () => { for (const form of $$('form[data-sent]')) delete form.dataset.sent; });

// --- Events: new ones come by themselves, unless the reader paused, has scrolled, or is in the table
const AT_TOP_PX = 80, FRESH_MS = 3000;
let paused = false, freshAt = 0, freshening = 0;
async function show_fresh() {
  freshening = 0;
  freshAt = Date.now();
  close();
  try { await reload(); open(); } catch { lose(); }
}
function freshen() {
  const reading = paused || scrollY > AT_TOP_PX || $('#rows')?.contains(document.activeElement) || $('#filter')?.contains(document.activeElement);
  if ($('[data-fresh]') && !reading && !freshening && !$('dialog[open]'))
    freshening = setTimeout(show_fresh, Math.max(0, freshAt + FRESH_MS - Date.now()));
}
function show_pause() {
  const button = $('#pause');
  if (!button) return;
  button.hidden = false;
  button.setAttribute('aria-pressed', String(paused));
  button.textContent = paused ? 'Paused: go on' : 'Pause';
}
document.addEventListener('click', e => {
  if (e.target.id === 'pause') {
    paused = !paused;
    show_pause();
    freshen();
  } else if (e.target.closest('[data-fresh]') && !e.ctrlKey && !e.metaKey && !e.shiftKey) {
    e.preventDefault();
    scrollTo(0, 0);
    show_fresh();
  }
});

document.addEventListener('click', async e => {        // a list that waited until its reader asks for it again
  if (!e.target.closest('[data-reload]')) return;
  close();
  try { await reload(); open(); } catch { lose(); }
});

// --- What a page needs once it is there
function prepare() {
  since = '';
  show_pause();
  const more = $('#filter details');
  if (more && innerWidth < 761) more.open = false;
}
prepare();
open();
