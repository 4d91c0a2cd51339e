// One participant's turns through the bridge's WebSocket.

const BUFFER_LIMIT = 4 * 1024 * 1024; // bytes that wait for a server that is away: some 20 s of float32
const RETRY_MS = [500, 1000, 2000, 5000];

export const address = (path) => `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`;

/**
 * `on` has message(response, heardAt), error(error), note(text) and closed(). `config()` gives the streaming_config,
 * and is asked again for each connection; `token` goes into the first frame.
 */
export class Stream {
  constructor(config, token, on) {
    this.config = config;
    this.token = token;
    this.on = on;
    this.attempt = 0;
    this.over = false;
    this.lost = 0; // seconds of sound that no connection took
    this.connect();
  }

  connect() {
    this.failed = false;
    this.sent = 0; // seconds on this connection
    this.sentAt = []; // [seconds, performance.now()] of the last minute's blocks
    this.started = false;
    const config = this.config();
    this.rate = config.audio_config.sample_rate_hertz;
    this.base = parseFloat(config.audio_start_offset ?? "0");
    this.socket = new WebSocket(address("/v1/stream"));
    this.socket.onopen = () => this.socket.send(JSON.stringify({ token: this.token || undefined, streaming_config: config }));
    this.socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
    this.socket.onclose = ({ code, reason }) => this.closed(code, reason);
  }

  get ready() {
    return this.started && this.socket.readyState === WebSocket.OPEN && this.socket.bufferedAmount < BUFFER_LIMIT / 8;
  }

  receive(message) {
    if (message.error) {
      this.failed = true;
      this.over = true;
      this.on.error(message.error);
      return;
    }
    if (message.stream_started) {
      if (this.turn === message.stream_started.turn_id) this.on.note("The server was lost and is back; what it had not answered was sent again.");
      this.turn = message.stream_started.turn_id;
      this.started = true;
      this.attempt = 0;
    }
    this.on.message(message);
    if (message.stream_ended && this.finishing) {
      this.over = true;
      this.socket.close(1000);
    }
  }

  closed(code, reason) {
    if (this.over) {
      this.on.closed();
      return;
    }
    if (code === 1009 || code === 1007) {
      this.over = true;
      this.on.error({ reason: reason || String(code), message: "The bridge did not understand this page: load it again." });
      this.on.closed();
      return;
    }
    const wait = RETRY_MS[Math.min(this.attempt++, RETRY_MS.length - 1)];
    if (this.attempt === 1) this.on.note("The bridge is gone: trying again. What is said meanwhile is lost. Start it with `kibun console`.");
    this.started = false;
    this.timer = setTimeout(() => { if (!this.over) this.connect(); }, wait);
  }

  /** Sends a block of float32 samples. */
  push(block) {
    if (this.over || this.finishing) return;
    if (this.socket.readyState !== WebSocket.OPEN || !this.started || this.socket.bufferedAmount > BUFFER_LIMIT) {
      this.lost += block.length / this.rate;
      return;
    }
    this.socket.send(block);
    this.sent += block.length / this.rate;
    this.sentAt.push([this.sent, performance.now()]);
    if (this.sentAt.length > 600) this.sentAt.splice(0, 300);
  }

  /** Milliseconds since the sample at `offset` of the turn's clock was sent; undefined if that is not known. */
  since(offset) {
    const found = this.sentAt.find(([seconds]) => seconds + this.base >= offset);
    return found && performance.now() - found[1];
  }

  endTurn() {
    if (this.started && this.socket.readyState === WebSocket.OPEN) this.socket.send('{"end_of_turn": {}}');
  }

  /** Ends the turn, waits for its result, and closes. */
  finish() {
    if (this.over) return;
    this.finishing = true;
    if (this.started && this.socket.readyState === WebSocket.OPEN) {
      this.endTurn();
    } else {
      this.over = true;
      clearTimeout(this.timer);
      this.socket.close();
      this.on.closed();
    }
  }
}

/**
 * Follows a conversation that others speak into, until `close`. `on` has message(response) with the contract's
 * WatchConversationResponse, error(error) and closed(). The bridge keeps it alive while the server is away.
 */
export function watch(conversationId, token, on) {
  const socket = new WebSocket(address("/v1/watch"));
  const request = { token: token || undefined, conversation_id: conversationId, include_past: true };
  socket.onopen = () => socket.send(JSON.stringify(request));
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.error) on.error(message.error);
    else on.message(message);
  };
  socket.onclose = on.closed;
  return () => socket.close(1000);
}
