'use strict';

// The plain page: log in, see who is live, enter, talk.
//
// Whatever people wrote reaches the document through textContent only. Ids stay
// text from end to end: real user ids exceed 2^53, which a number here cannot hold.

const CODE = { login: 1001, logout: 1002, business: 1003, heartbeat: 1004, ack: 1005, receipt: 1006 };
const CHAT = 5555;
const ROOM_CLOSED = 5600;
const VIEWERS = 5601;
const MAGIC = 18673;

const HEARTBEAT_MS = 30000;       // half of what the server calls idle
const SILENCE_MS = 75000;         // two heartbeats unanswered: the line is dead
const RECEIPT_MS = 15000;         // the server gives up storing after 10 s
const LIST_MS = 2000;
const BACKOFF_MIN_MS = 500;
const BACKOFF_MAX_MS = 15000;
const SHOWN_MAX = 500;            // messages kept in the document
const SEEN_MAX = 2000;            // msgIds remembered against repeats

const REASONS = {
  4004: '房间不存在或已结束 (the room is closed)',
  4005: '你不在这个房间 (you are not in this room)',
  4006: '服务器不认识这类消息 (not routed)',
  4007: '消息格式无法识别 (not readable)',
  4008: '发得太快了，稍后重发 (too fast)',
  4009: '内容未通过检查 (content refused)',
  4010: '你被禁言了 (you are muted)',
  5000: '服务器没有确认存好，可以重发，不会重复 (not confirmed; safe to resend)',
};

const ENDINGS = {
  1000: '已退出 (logged out)',
  1002: '协议错误 (protocol error)',
  1003: '服务器拒绝了二进制数据 (binary refused)',
  1007: '文字编码有误 (invalid UTF-8)',
  1009: '消息太大 (too large)',
  3501: '身份无效，请重新登录 (unauthorised)',
  3502: '你被请出了 (kicked)',
  3503: '已在别处登录 (replaced by a newer login)',
  3504: '你被封禁了 (banned)',
  3505: '协议错误 (protocol abuse)',
};

const $ = (id) => document.getElementById(id);

// JSON with whole numbers of 16 digits and more as strings: no digit is lost.
function parseExact(text) {
  const token = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
  return JSON.parse(text.replace(token, (t) => (/^-?\d{16,}$/.test(t) ? `"${t}"` : t)));
}

function parseOrNull(text) {
  try { return parseExact(text); } catch { return null; }
}

const isId = (text) => /^[1-9]\d{0,19}$/.test(text);

const later = (a, b) => BigInt(a) > BigInt(b);

function randomName() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, '0')).join('');
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// --- asking the server ---

// This tab's own login. Without one the cookie counts, which all tabs share.
const tab = {
  get token() { return sessionStorage.getItem('qiyu.token'); },
  set token(value) {
    if (value) sessionStorage.setItem('qiyu.token', value);
    else sessionStorage.removeItem('qiyu.token');
  },
};

class Refused extends Error {
  constructor(code, msg) { super(msg); this.code = code; }
}

async function ask(path, fields = {}) {
  return (await askWhole(path, fields)).data;
}

async function askWhole(path, fields) {
  const headers = { 'Content-Type': 'application/x-www-form-urlencoded' };
  if (tab.token) headers.Authorization = `Bearer ${tab.token}`;
  let response;
  let answer;
  try {
    response = await fetch(path, { method: 'POST', headers, body: new URLSearchParams(fields) });
    answer = parseExact(await response.text());
  } catch {
    throw new Refused(0, '连不上服务器 (the server cannot be reached)');
  }
  if (answer.code !== 200) throw new Refused(answer.code, answer.msg);
  return { data: answer.data, token: response.headers.get('x-qiyu-token') };
}

function complain(error) {
  $('alert').textContent = error ? error.message : '';
  $('alert').hidden = !error;
}

// --- who ---

let me = null; // { id, name, vip }

async function whoAmI() {
  const home = await ask('/home/initPage');
  return home.loginStatus
    ? { id: String(home.userId), name: home.nickName, vip: home.showStartLivingBtn }
    : null;
}

function become(who) {
  me = who;
  $('who').textContent = who ? who.name : '';
  $('who').hidden = !who;
  $('switch').hidden = !who;
}

async function logIn(event) {
  event.preventDefault();
  const fields = { vip: $('vip').checked };
  const name = $('name').value.trim();
  if (name) fields.nickName = name;
  tab.token = null;
  try {
    const { data: who, token } = await askWhole('/user/login', fields);
    tab.token = token;
    become({ id: String(who.userId), name: who.nickName, vip: fields.vip });
    complain(null);
    show();
  } catch (error) {
    complain(error.code === 403
      ? new Error('本站不开放页面登录，请先在你的系统登录 (log in with your own login system first)')
      : error);
  }
}

async function offerLogin() {
  become(null);
  view('login');
  const known = await whoAmI().catch(() => null);
  $('known').hidden = !known;
  if (known) {
    $('continue').textContent = `以「${known.name}」继续 · Continue`;
    $('continue').onclick = () => { become(known); show(); };
  }
}

// --- the lobby ---

let pages = 1;
let listTimer = null;

async function refreshList() {
  clearTimeout(listTimer);
  if ($('lobby').hidden) return;
  if (!document.hidden) {
    try {
      const rows = [];
      let hasNext = true;
      for (let page = 1; page <= pages && hasNext; page += 1) {
        const found = await ask('/living/list', { type: $('list-type').value, page, pageSize: 20 });
        rows.push(...found.list);
        hasNext = found.hasNext;
      }
      showList(rows, hasNext);
    } catch (error) {
      $('list-state').textContent = `列表暂时读不到：${error.message}`;
    }
  }
  listTimer = setTimeout(refreshList, LIST_MS);
}

function showList(rows, hasNext) {
  const focused = document.activeElement && document.activeElement.getAttribute('href');
  $('list-state').textContent = rows.length ? '' : '现在没有人直播。 Nobody is live.';
  $('rooms').replaceChildren(...rows.map((row) => {
    const link = element('a');
    link.href = `#/room/${row.id}`;
    link.append(element('b', '', row.roomName), element('span', '', `${row.watchNum} 人 · #${row.id}`));
    const item = element('li');
    item.append(link);
    return item;
  }));
  $('more').hidden = !hasNext;
  if (focused) $('rooms').querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

async function openRoom(event) {
  event.preventDefault();
  const fields = { type: $('room-type').value };
  const name = $('room-name').value.trim();
  if (name) fields.roomName = name;
  try {
    const { roomId } = await ask('/living/startingLiving', fields);
    complain(null);
    location.hash = `#/room/${roomId}`;
  } catch (error) { complain(error); }
}

// --- a room ---

let room = null; // the Room being shown

class Room {
  constructor(id) {
    this.id = id;
    this.socket = null;
    this.left = false;        // gone from this view: nothing may touch the page any more
    this.over = false;        // closed by its anchor
    this.cursor = null;       // the last position in the log that is certainly behind us
    this.failures = 0;
    this.lastHeard = 0;
    this.seen = new Set();
    this.pending = new Map(); // clientMsgId -> what was said and what became of it
    this.timers = new Set();
    this.beat = setInterval(() => this.heartbeat(), HEARTBEAT_MS);
  }

  async enter() {
    let config;
    try {
      config = await ask('/living/anchorConfig', { roomId: this.id });
    } catch (error) {
      if (this.left) return;
      if (error.code === 401) { tab.token = null; offerLogin(); return; }
      this.state('off', error.message);
      $('again').hidden = false;
      return;
    }
    if (this.left) return;
    if (String(config.roomId) === '-1') { this.ended(); return; }
    $('room-title').textContent = config.roomName;
    $('room-anchor').textContent = `主播 ${config.anchorNickName}`;
    $('close-room').hidden = !config.anchor;
    this.watching(config.watchNum);
    this.connect();
  }

  async connect() {
    if (this.left || this.over) return;
    $('again').hidden = true;
    this.state('wait', '正在连接… Connecting…');
    let config;
    try {
      config = await ask('/im/getImConfig');
    } catch (error) {
      if (this.left) return;
      if (error.code === 401) { tab.token = null; offerLogin(); return; }
      this.again(error.message);
      return;
    }
    if (this.left) return;
    const user = String(config.userId);
    if (me && user !== me.id) {
      // Another tab logged in as somebody else, and this one lives on the shared cookie.
      this.stopped('这个浏览器里换了登录的人 (somebody else logged in here)');
      return;
    }
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    const resume = this.cursor ? `?lastMsgId=${this.cursor}` : '';
    const url = `${scheme}://${reachable(config.wsImServerAddress)}/-/${user}/1001/${this.id}${resume}`;
    let socket;
    try {
      socket = new WebSocket(url, ['qiyu', config.token]);
    } catch (error) {
      this.again(error.message);
      return;
    }
    this.socket = socket;
    const asked = this.cursor;
    socket.onmessage = (event) => { if (this.socket === socket) this.hear(event.data, asked); };
    socket.onclose = (event) => { if (this.socket === socket) this.closed(event); };
  }

  send(code, body) {
    if (!this.socket || this.socket.readyState !== WebSocket.OPEN) return false;
    const text = typeof body === 'string' ? body : JSON.stringify(body);
    this.socket.send(JSON.stringify({ magic: MAGIC, code, body: text }));
    return true;
  }

  heartbeat() {
    if (!this.socket || this.socket.readyState !== WebSocket.OPEN) return;
    if (Date.now() - this.lastHeard > SILENCE_MS) {
      // The browser may take minutes to notice; do not wait for it.
      const silent = this.socket;
      this.socket = null;
      silent.close();
      this.again('对面没有声音了 (the line fell silent)');
      return;
    }
    this.send(CODE.heartbeat, {});
  }

  hear(text, asked) {
    this.lastHeard = Date.now();
    const frame = parseOrNull(text);
    const body = frame && typeof frame.body === 'string' ? parseOrNull(frame.body) : frame && frame.body;
    if (!frame || !body) return;
    if (frame.code === CODE.login) this.entered(body, asked);
    else if (frame.code === CODE.business) this.business(body);
    else if (frame.code === CODE.receipt) this.receipt(body);
    else if (frame.code === CODE.logout) this.reason = body.data;
  }

  entered(body, asked) {
    if (body.data !== 'true') return;
    this.failures = 0;
    this.reason = null;
    this.state('on', `已连接：${me ? me.name : ''} · Connected`);
    $('say').disabled = false;
    const position = body.msgId === undefined ? null : String(body.msgId);
    if (!asked) {
      this.cursor = position;
    } else if (body.recovered !== true) {
      this.cursor = position;
      this.note('断线期间的消息可能不全 · Messages may be missing here');
    } // else: what was missed follows, and moves the cursor as it comes
    for (const [id, message] of this.pending) if (!message.refused) this.put(id, message.text);
  }

  business(body) {
    const msgId = body.msgId === undefined ? null : String(body.msgId);
    if (msgId) {
      this.send(CODE.ack, { msgId });
      if (this.seen.has(msgId)) return; // sent again because our ack was late
      this.seen.add(msgId);
      if (this.seen.size > SEEN_MAX) this.seen.delete(this.seen.values().next().value);
    }
    const data = typeof body.data === 'string' ? parseOrNull(body.data) : body.data;
    if (!data) return;
    const here = String(data.roomId) === this.id;
    if (here && msgId && (!this.cursor || later(msgId, this.cursor))) this.cursor = msgId;
    if (body.bizCode === CHAT && here) {
      this.line(msgId, data.senderName || String(data.userId), String(data.content), 'theirs');
    } else if (body.bizCode === CHAT) {
      this.line(msgId, `${data.senderName || data.senderId} (私信)`, String(data.content), 'theirs');
    } else if (body.bizCode === VIEWERS && here) {
      this.watching(data.watchNum);
    } else if (body.bizCode === ROOM_CLOSED && here) {
      this.ended();
    }
  }

  say(text) {
    const id = randomName();
    const row = this.line(null, me ? me.name : '我', text, 'mine');
    const fate = element('span', 'fate', '发送中…');
    row.append(fate);
    this.pending.set(id, { text, row, fate, timer: 0, refused: false });
    this.put(id, text);
  }

  // Sends, or sends again: under the same id the server stores it once.
  put(id, text) {
    const message = this.pending.get(id);
    clearTimeout(message.timer);
    message.refused = false;
    message.row.classList.remove('failed');
    message.fate.textContent = '发送中… sending';
    const data = `{"roomId":${this.id},"type":1,"content":${JSON.stringify(text)}}`;
    if (!this.send(CODE.business, { bizCode: CHAT, clientMsgId: id, data })) {
      message.fate.textContent = '等待重连后发送 · waiting for the line';
      return;
    }
    message.timer = setTimeout(() => {
      this.fail(id, '没有收到确认，可以重发，不会重复 (no receipt; safe to resend)');
    }, RECEIPT_MS);
  }

  receipt(body) {
    const message = body.clientMsgId && this.pending.get(body.clientMsgId);
    if (!message) return;
    if (body.data !== 'true') {
      message.refused = true; // only its author sends it again
      this.fail(body.clientMsgId, REASONS[body.bizCode] || `未发送 (${body.bizCode})`);
      return;
    }
    clearTimeout(message.timer);
    this.pending.delete(body.clientMsgId);
    message.row.classList.remove('failed');
    message.fate.remove();
    if (body.msgId !== undefined) this.place(message.row, String(body.msgId));
  }

  fail(id, why) {
    const message = this.pending.get(id);
    if (!message || this.left) return;
    clearTimeout(message.timer);
    message.row.classList.add('failed');
    message.fate.textContent = why;
    if (this.over) return;
    const again = element('button', 'quiet', '重发');
    again.type = 'button';
    again.onclick = () => this.put(id, message.text);
    message.fate.append(again);
  }

  closed(event) {
    this.socket = null;
    if (this.left || this.over) return;
    const retry = event.code === 1012 && /retry_ms=(\d+)/.exec(event.reason);
    if (retry) { this.again('服务器在换班 (the gateway drains)', Math.min(Number(retry[1]), 60000)); return; }
    const final = event.code in ENDINGS || (event.code >= 3500 && event.code <= 3999);
    if (final) { this.stopped(ENDINGS[event.code] || `连接被结束 (${event.code})`); return; }
    this.again(`连接断了 (${event.code})`);
  }

  stopped(why) {
    this.state('off', why);
    $('say').disabled = true;
    $('again').hidden = false;
  }

  async again(why, wait) {
    if (this.left || this.over) return;
    this.failures += 1;
    const backoff = Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** Math.min(this.failures - 1, 10));
    const pause = wait ?? backoff * (0.5 + Math.random() / 2); // not everybody at the same moment
    this.state('wait', `${why}，${Math.ceil(pause / 1000)} 秒后重连 · reconnecting`);
    await new Promise((done) => {
      const timer = setTimeout(() => { this.timers.delete(timer); done(); }, pause);
      this.timers.add(timer);
    });
    if (this.left || this.over) return;
    // A refused handshake does not tell the page why; the room may have ended meanwhile.
    const config = this.failures > 1
      ? await ask('/living/anchorConfig', { roomId: this.id }).catch(() => null)
      : null;
    if (this.left || this.over) return;
    if (config && String(config.roomId) === '-1') this.ended();
    else this.connect();
  }

  ended() {
    this.over = true;
    this.state('off', '直播已结束 · The room is closed');
    $('say').disabled = true;
    $('close-room').hidden = true;
    $('again').hidden = true;
    for (const id of [...this.pending.keys()]) this.fail(id, REASONS[4004]);
    this.hangUp();
  }

  hangUp() {
    const socket = this.socket;
    this.socket = null;
    if (socket) {
      if (socket.readyState === WebSocket.OPEN) {
        socket.send(JSON.stringify({ magic: MAGIC, code: CODE.logout, body: '{}' }));
      }
      socket.close();
    }
  }

  leave() {
    this.left = true;
    clearInterval(this.beat);
    for (const timer of this.timers) clearTimeout(timer);
    for (const message of this.pending.values()) clearTimeout(message.timer);
    this.hangUp();
  }

  // --- what is seen ---

  state(kind, text) {
    $('link').dataset.state = kind;
    $('link').textContent = text;
  }

  watching(count) {
    $('watching').textContent = `${count} 人在看 · watching`;
  }

  note(text) {
    this.add(element('li', 'note', text));
  }

  line(msgId, name, text, whose) {
    const row = element('li', whose);
    row.append(element('span', 'from', name), document.createTextNode(text));
    if (msgId) this.place(row, msgId); else this.add(row);
    return row;
  }

  // Where its id says: a message that was repeated may come late.
  place(row, msgId) {
    row.dataset.id = msgId;
    const list = $('messages');
    const atEnd = this.atEnd();
    let next = null;
    for (let other = list.lastElementChild; other; other = other.previousElementSibling) {
      if (other === row) continue;
      if (other.dataset.id && !later(other.dataset.id, msgId)) break;
      if (other.dataset.id) next = other;
    }
    // Rows without an id (still being sent) stay below what has one.
    if (!next) next = this.firstUnplaced(row);
    if (next) list.insertBefore(row, next); else list.append(row);
    this.trim(atEnd);
  }

  firstUnplaced(row) {
    let first = null;
    for (let other = $('messages').lastElementChild; other; other = other.previousElementSibling) {
      if (other === row) continue;
      if (!other.classList.contains('mine') || other.dataset.id) break;
      first = other;
    }
    return first;
  }

  add(row) {
    const atEnd = this.atEnd();
    $('messages').append(row);
    this.trim(atEnd || row.classList.contains('mine'));
  }

  atEnd() {
    const list = $('messages');
    return list.scrollHeight - list.scrollTop - list.clientHeight < 48;
  }

  trim(follow) {
    const list = $('messages');
    while (list.childElementCount > SHOWN_MAX) list.firstElementChild.remove();
    if (follow) list.scrollTop = list.scrollHeight;
  }
}

// A gateway that says "127.0.0.1" means the machine this page came from.
function reachable(address) {
  const [, host, port] = /^(.*):(\d+)$/.exec(address) || [null, address, ''];
  const local = /^(127\.\d+\.\d+\.\d+|localhost|0\.0\.0\.0|\[::1?\])$/.test(host);
  return local ? `${location.hostname}:${port}` : address;
}

async function closeRoom() {
  if (!room) return;
  try {
    await ask('/living/closeLiving', { roomId: room.id });
    complain(null);
  } catch (error) { complain(error); }
}

// --- which view ---

function view(name) {
  for (const id of ['login', 'lobby', 'room']) $(id).hidden = id !== name;
  if (name !== 'room' && room) { room.leave(); room = null; }
}

function show() {
  if (!me) { offerLogin(); return; }
  const [, id] = /^#\/room\/(\d+)$/.exec(location.hash) || [];
  if (id && isId(id)) {
    if (room && room.id === id) return;
    if (room) room.leave();
    view('room');
    $('messages').replaceChildren();
    $('room-title').textContent = `#${id}`;
    for (const name of ['room-anchor', 'watching']) $(name).textContent = '';
    $('close-room').hidden = true;
    $('again').hidden = true;
    $('say').disabled = true;
    room = new Room(id);
    room.enter();
    return;
  }
  view('lobby');
  $('open-form').hidden = !me.vip;
  pages = 1;
  refreshList();
}

$('login-form').addEventListener('submit', logIn);
$('open-form').addEventListener('submit', openRoom);
$('switch').addEventListener('click', () => { tab.token = null; offerLogin(); });
$('more').addEventListener('click', () => { pages += 1; refreshList(); });
$('list-type').addEventListener('change', () => { pages = 1; refreshList(); });
$('close-room').addEventListener('click', closeRoom);
$('again').addEventListener('click', () => { if (room) { $('again').hidden = true; room.enter(); } });
$('say-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = $('say').value.trim();
  if (!text || !room || room.over) return;
  $('say').value = '';
  room.say(text);
});
window.addEventListener('hashchange', show);
document.addEventListener('visibilitychange', () => { if (!document.hidden) refreshList(); });

// A tab that has logged in itself goes on; any other is asked who it wants to be.
(async () => {
  if (tab.token) {
    try {
      const who = await whoAmI();
      if (who) become(who); else tab.token = null;
    } catch (error) { complain(error); }
  }
  show();
})();
