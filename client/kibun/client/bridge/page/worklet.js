// What the microphone hears, mono, in blocks of 100 ms at the context's own rate.
registerProcessor("blocks", class extends AudioWorkletProcessor {
  block = new Float32Array(Math.round(sampleRate / 10));
  filled = 0;

  process([[samples = []]]) {
    for (const sample of samples) {
      this.block[this.filled++] = sample;
      if (this.filled === this.block.length) {
        this.port.postMessage(this.block);
        this.filled = 0;
      }
    }
    return true;
  }
});
