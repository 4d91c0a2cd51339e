// One participant's turns through the bridge's WebSocket.

const BUFFER_LIMIT = 4 * 1024 * 1024; // bytes that wait for a server that is away: some 20 s of float32
const RETRY_MS = [500, 1000, 2000, 5000];
const pauseMs = (attempt) => RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)];

/** Nothing answers where this page came from. */
export class BridgeGone extends Error {}

export const address = (path) => `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`;

/**
 * `on` has message(response), error(error), note(text), closed(), and gone(), after which it tries to reach the bridge
 * until it is back. `config()` gives the streaming_config, and is asked again for each connection; `token` goes into the
 * first frame.
 */
export class Stream {
  constructor(config, token, on) {
    this.config = config;
    this.token = token;
    this.on = on;
    this.attempt = 0;
    this.over = false;
    this.base = parseFloat(config().audio_start_offset ?? "0");
    this.sent = 0; // seconds on this connection
    this.connect();
  }

  connect() {
    this.base += this.sent; // one clock for all connections: what none of them took is no part of it
    this.sent = 0;
    this.sentAt = []; // [seconds, performance.now()] of the last minute's blocks
    this.started = false;
    const config = { ...this.config(), audio_start_offset: `${this.base.toFixed(9)}s` };
    this.rate = config.audio_config.sample_rate_hertz;
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
    this.started = false;
    this.timer = setTimeout(() => { if (!this.over) this.connect(); }, pauseMs(this.attempt++));
    if (this.attempt === 1) this.on.gone();
  }

  /** Sends a block of float32 samples; false: no connection took it, and it is lost. */
  push(block) {
    if (this.over || this.finishing) return false;
    if (this.socket.readyState !== WebSocket.OPEN || !this.started || this.socket.bufferedAmount > BUFFER_LIMIT) return false;
    this.socket.send(block);
    this.sent += block.length / this.rate;
    this.sentAt.push([this.sent, performance.now()]);
    if (this.sentAt.length > 600) this.sentAt.splice(0, 300);
    return true;
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
 * Follows a conversation that others speak into, until `close`. `on` has connected(), then message(response, again)
 * with the contract's WatchConversationResponse, error(error), gone() and closed(). The bridge keeps it alive while the
 * server is away. A bridge that was lost and is back tells the past `again`.
 */
export function watch(conversationId, token, on) {
  const request = { token: token || undefined, conversation_id: conversationId, include_past: true };
  let socket, timer, attempt = 0, again = false, over = false;
  const connect = () => {
    let begun = false;
    socket = new WebSocket(address("/v1/watch"));
    socket.onopen = () => socket.send(JSON.stringify(request));
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.error) {
        over = true;
        on.error(message.error);
        return;
      }
      if (!begun) on.connected();
      begun = true;
      attempt = 0;
      on.message(message, again);
    };
    socket.onclose = ({ code }) => {
      over ||= code === 1000;
      if (over) {
        on.closed();
        return;
      }
      again = true;
      timer = setTimeout(connect, pauseMs(attempt++));
      if (attempt === 1) on.gone();
    };
  };
  connect();
  return () => {
    over = true;
    clearTimeout(timer);
    socket.close(1000);
  };
}
