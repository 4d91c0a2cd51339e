// Streams a WAV file to kibun and prints every estimate: node stream.js speech.wav [--live]
import { readFileSync } from "node:fs";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));
const definition = loadSync(["kibun/v1/speech_analysis.proto", "error_details.proto"], {
  includeDirs: [path("../../protos"), path("..")],
  keepCase: true, // names as in the .proto; without it `streaming_config` would be ignored without a word
  longs: String, // int64, the seconds of a Duration too
  enums: String,
  defaults: true, // zeros and false, which are not sent, are there; unset messages are null
  oneofs: true, // answer.streaming_response names the field that is set
});
const { SpeechAnalysisService } = grpc.loadPackageDefinition(definition).kibun.v1;

/** Rate and samples of a WAV file: kibun takes samples without a header, of one channel. */
function readWav(file) {
  const bytes = readFileSync(file);
  if (bytes.toString("latin1", 0, 4) !== "RIFF" || bytes.toString("latin1", 8, 12) !== "WAVE")
    throw new Error(`${file} is not a WAV file`);
  let format;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const [name, size] = [bytes.toString("latin1", at, at + 4), bytes.readUInt32LE(at + 4)];
    const chunk = bytes.subarray(at + 8, at + 8 + size); // no further than the file: what a pipe wrote has no true size
    if (name === "fmt " && chunk.length >= 16) format = chunk;
    if (name === "data" && format) {
      const [channels, rate, bits] = [format.readUInt16LE(2), format.readUInt32LE(4), format.readUInt16LE(14)];
      const tag = format.readUInt16LE(0);
      const kind = tag === 0xfffe && size >= 26 && format.length >= 26 ? format.readUInt16LE(24) : tag;
      if (kind !== 1 || bits !== 16) throw new Error(`${file} has to hold 16-bit PCM; this is format ${kind}, ${bits} bits`);
      if (channels !== 1) throw new Error(`${file} has to be mono, not ${channels} channels: mix down, or a stream for each`);
      return { rate, samples: chunk };
    }
    at += 8 + size + (size % 2);
  }
  throw new Error(`${file} holds no samples`);
}

/** Reason and field of an error; those that no kibun server made (a lost connection) have neither. */
function explain(error) {
  const [trailer] = error.metadata?.get("grpc-status-details-bin") ?? [];
  const read = (type, bytes) => definition[`google.rpc.${type}`].deserialize(bytes);
  const details = {};
  for (const { type_url, value } of trailer ? read("Status", trailer).details : []) {
    const type = type_url.split("/google.rpc.")[1];
    if (type === "ErrorInfo" || type === "BadRequest") details[type] = read(type, value);
  }
  return {
    reason: details.ErrorInfo?.reason ?? grpc.status[error.code],
    field: details.BadRequest?.field_violations[0]?.field,
  };
}

const seconds = (duration) => Number(duration.seconds) + duration.nanos / 1e9;

function show(answer) {
  const event = answer[answer.streaming_response]; // ignore kinds that you do not know: a newer server sends more
  if (answer.streaming_response === "utterance_result") {
    const span = `${seconds(event.start_offset).toFixed(2)} ${seconds(event.end_offset).toFixed(2)}`;
    const emotion = event.emotion && `valence ${event.emotion.valence.toFixed(2)} arousal ${event.emotion.arousal.toFixed(2)}`;
    console.log(event.is_final ? "final" : "interim", span, emotion ?? "no emotion");
  } else if (answer.streaming_response === "stream_warning") console.log("warning", `${event.reason}: ${event.message}`);
  else if (answer.streaming_response === "turn_result") console.log("turn", event.utterance_count, "utterances");
  else if (answer.streaming_response === "stream_started" && event.synthetic_model)
    console.log("synthetic model: tells you nothing about real people");
}

async function main() {
  const { values: options, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      server: { type: "string", default: "127.0.0.1:50051" },
      model: { type: "string" },
      token: { type: "string", default: process.env.KIBUN_TOKEN },
      live: { type: "boolean", default: false }, // as fast as it was spoken: only then are there interims
    },
  });
  const { rate, samples } = readWav(positionals[0] ?? "speech.wav");
  const client = new SpeechAnalysisService(options.server, grpc.credentials.createInsecure()); // TLS: createSsl()
  const metadata = new grpc.Metadata();
  if (options.token) metadata.set("authorization", `Bearer ${options.token}`);
  const info = await new Promise((resolve, reject) => {
    const deadline = Date.now() + 10_000;
    client.GetServiceInfo({}, metadata, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
  const block = Math.min(2 * Math.round(rate / 10), info.max_audio_content_bytes); // 100 ms

  async function* requests() {
    const audio_config = { encoding: "AUDIO_ENCODING_LINEAR16", sample_rate_hertz: rate };
    yield { streaming_config: { audio_config, model: options.model, features: { interim_results: true } } };
    for (let at = 0; at < samples.length; at += block) {
      yield { audio_content: samples.subarray(at, at + block) };
      if (options.live) await sleep(100);
    }
  }
  const call = client.StreamingAnalyze(metadata);
  Readable.from(requests()).pipe(call); // waits while write() returns false, and closes our side at the end
  for await (const answer of call) show(answer);
  client.close();
}

main().catch((error) => {
  if (error.code === undefined || !error.metadata) console.error(error.message); // not of gRPC
  else {
    const { reason, field } = explain(error);
    console.error(`${reason}${field ? ` (${field})` : ""}: ${error.details}`);
  }
  process.exit(1);
});
