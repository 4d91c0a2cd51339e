// Where sound comes from: a microphone, or a recording that the browser decodes. Each hands on blocks of 100 ms.

import { BridgeGone } from "./stream.js";

const UNTOUCHED = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };

export async function microphones() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return devices.filter((device) => device.kind === "audioinput" && device.deviceId);
}

/** Opens a microphone; `take` gets each block. Resolves to its rate, what the browser does to its sound, and `stop`. */
export async function openMicrophone(deviceId, take) {
  if (!navigator.mediaDevices) throw new Error("Browsers give the microphone to https pages and localhost alone: open this page under http://localhost.");
  const audio = { ...UNTOUCHED, ...(deviceId && { deviceId: { exact: deviceId } }) };
  const context = new AudioContext();
  let stream;
  try {
    await context.audioWorklet.addModule("worklet.js").catch(() => { throw new BridgeGone(); });
    stream = await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    context.close();
    throw error;
  }
  const blocks = new AudioWorkletNode(context, "blocks", { channelCount: 1, channelCountMode: "explicit" });
  blocks.port.onmessage = ({ data }) => take(data);
  context.createMediaStreamSource(stream).connect(blocks);
  await context.resume();
  const track = stream.getAudioTracks()[0];
  return {
    rate: context.sampleRate,
    label: track.label,
    settings: track.getSettings(),
    stop() {
      blocks.port.onmessage = null;
      track.stop();
      context.close();
    },
  };
}

/** A recording, decoded: its channels' mean, at the rate of this machine's sound. */
export async function decode(data) {
  const context = new AudioContext();
  try {
    const decoded = await context.decodeAudioData(data);
    const samples = decoded.getChannelData(0).slice();
    for (let channel = 1; channel < decoded.numberOfChannels; channel++) {
      decoded.getChannelData(channel).forEach((sample, i) => { samples[i] += sample; });
    }
    if (decoded.numberOfChannels > 1) samples.forEach((_, i) => { samples[i] /= decoded.numberOfChannels; });
    return { samples, rate: decoded.sampleRate };
  } catch {
    throw new Error("This browser cannot decode that file: convert it to WAV, FLAC or MP3, or use `kibun stream`.");
  } finally {
    context.close();
  }
}

/** Browsers let a page sound once somebody has clicked on it, or pressed a key. */
export const isMuted = () => navigator.userActivation?.hasBeenActive === false;

/** Plays samples aloud, once that is allowed from where they are by then; returns how to stop. */
export function play(samples, rate) {
  const context = new AudioContext();
  const buffer = context.createBuffer(1, samples.length, rate);
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  const began = performance.now();
  const waiting = new AbortController();
  const start = () => {
    waiting.abort();
    context.resume();
    source.start(0, (performance.now() - began) / 1000);
  };
  if (isMuted()) for (const act of ["pointerup", "keydown"]) addEventListener(act, start, { signal: waiting.signal });
  else start();
  return () => {
    waiting.abort();
    if (context.state !== "closed") context.close();
  };
}

/**
 * Hands on samples in blocks at `pace` times the speed at which they were spoken; 0: as fast as `ready` lets it.
 * Stops early when `signal` is aborted.
 */
export async function feed(samples, rate, pace, take, ready, signal) {
  const size = Math.round(rate / 10);
  const began = performance.now();
  for (let at = 0; at < samples.length && !signal.aborted; at += size) {
    const due = pace ? began + ((at + size) / rate) * 1000 / pace : 0;
    await until(due, signal);
    while (!ready() && !signal.aborted) await until(performance.now() + 20, signal);
    if (!signal.aborted) take(samples.slice(at, at + size));
  }
}

function until(time, signal) {
  const wait = time - performance.now();
  if (wait <= 0) return Promise.resolve();
  return new Promise((done) => {
    const timer = setTimeout(done, wait);
    signal.addEventListener("abort", () => { clearTimeout(timer); done(); }, { once: true });
  });
}
