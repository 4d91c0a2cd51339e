// What the page knows of each participant. Every list has a limit, so hours of events take no more room than minutes.

export const TRAITS = ["openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism"];
export const seconds = (duration) => (duration ? parseFloat(duration) : 0);

export class Recent {
  constructor(limit) {
    this.limit = limit;
    this.items = [];
  }

  push(item) {
    this.items.push(item);
    if (this.items.length > this.limit * 1.25) this.items.splice(0, this.items.length - this.limit);
  }

  get last() {
    return this.items.at(-1);
  }
}

const BIN_S = 0.02;

export class Participant {
  constructor(name) {
    this.name = name;
    this.bins = new Recent(1500); // [low, high] of 20 ms: half a minute
    this.time = 0; // seconds on the turn's clock up to which sound was heard
    this.speech = new Recent(100); // [begin, end], end undefined while somebody speaks
    this.utterances = new Recent(100); // [begin, end]
    this.finals = new Recent(300); // {valence, arousal}
    this.interims = new Recent(12); // of the present utterance
    this.course = new Recent(300); // personality after each final
    this.personality = undefined;
    this.state = "silent";
  }

  /** Takes a block of samples that was sent, for the picture of its sound. */
  hear(block, rate) {
    const size = Math.round(rate * BIN_S);
    for (let at = 0; at + size <= block.length; at += size) {
      let low = 0, high = 0;
      for (let i = at; i < at + size; i++) {
        if (block[i] < low) low = block[i];
        if (block[i] > high) high = block[i];
      }
      this.bins.push([low, high]);
    }
    this.time += block.length / rate;
  }

  /** A new stream, or turn, whose clock begins at `offset`. */
  begin(offset) {
    this.bins.items.length = this.speech.items.length = this.utterances.items.length = 0;
    this.time = offset;
  }

  /** The connection was lost: what it had begun to tell has no end of its own. */
  interrupt() {
    if (this.speech.last) this.speech.last[1] ??= this.time;
    this.interims.items.length = 0;
    this.state = "silent";
  }

  /** Where there is no sound to be seen, as in a conversation that is watched: time goes on as events tell it. */
  follow(message) {
    const started = message.stream_started;
    if (started) this.begin(seconds(started.effective_config?.audio_start_offset));
    const at = message.speech_event?.offset ?? message.utterance_result?.end_offset;
    this.time = Math.max(this.time, seconds(at));
  }

  /** `present`: it is of the stream whose sound is shown, not of one before that is still being answered. */
  apply(message, present = true) {
    if (message.speech_event && present) this.applySpeech(message.speech_event);
    if (message.utterance_result) this.applyUtterance(message.utterance_result, present);
    if (message.personality_update) {
      this.personality = message.personality_update.personality;
      this.course.push(this.personality);
    }
    if (message.turn_result && present) this.state = "turn over";
  }

  applySpeech({ type, offset }) {
    const at = seconds(offset);
    if (type === "TYPE_SPEECH_ACTIVITY_BEGIN") {
      this.speech.push([at, undefined]);
      this.state = "speaking";
    } else if (type === "TYPE_SPEECH_ACTIVITY_END") {
      if (this.speech.last) this.speech.last[1] = at;
      this.state = "silent";
    }
  }

  applyUtterance(result, present) {
    const { emotion, is_final: final } = result;
    if (final) {
      this.interims.items.length = 0;
      if (present) this.utterances.push([seconds(result.start_offset), seconds(result.end_offset)]);
      if (emotion) this.finals.push(emotion);
    } else if (emotion) {
      this.interims.push(emotion);
    }
  }

  /** Traits that are no better than guessing the mean for everyone. */
  get doubtful() {
    const { expected_error: error, expected_error_of_mean: ofMean } = this.personality ?? {};
    return error && ofMean ? TRAITS.filter((trait) => error[trait] >= ofMean[trait]) : [];
  }
}
