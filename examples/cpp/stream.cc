// Streams a WAV file to kibun and prints every estimate: stream speech.wav [--live]
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "error_details.pb.h"
#include "kibun/v1/speech_analysis.grpc.pb.h"

namespace v1 = kibun::v1;

struct Recording {
  int rate = 0;         // samples per second
  std::string samples;  // 16-bit little-endian, one channel
};

// kibun takes samples without a header, of one channel.
Recording read_wav(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const auto number = [&](size_t at, int size) {
    uint32_t value = 0;
    for (int i = size - 1; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(bytes.at(at + i));
    return value;
  };
  if (bytes.compare(0, 4, "RIFF") != 0 || bytes.size() < 12 || bytes.compare(8, 4, "WAVE") != 0)
    throw std::runtime_error(path + " is not a WAV file");
  size_t format = 0;
  for (size_t at = 12; at + 8 <= bytes.size();) {
    const std::string name = bytes.substr(at, 4);
    const size_t size = number(at + 4, 4);
    at += 8;
    if (name == "fmt " && size >= 16 && at + size <= bytes.size()) format = at;
    if (name == "data" && format != 0) {
      uint32_t kind = number(format, 2);
      if (kind == 0xfffe && number(format - 4, 4) >= 26) kind = number(format + 24, 2);
      const uint32_t channels = number(format + 2, 2), bits = number(format + 14, 2);
      if (kind != 1 || bits != 16)
        throw std::runtime_error(path + " has to hold 16-bit PCM; this is format " + std::to_string(kind) + ", " +
                                 std::to_string(bits) + " bits");
      if (channels != 1)
        throw std::runtime_error(path + " has to be mono, not " + std::to_string(channels) +
                                 " channels: mix down, or a stream for each");
      // No further than the file: what a pipe wrote has no true size.
      return {static_cast<int>(number(format + 4, 4)), bytes.substr(at, size)};
    }
    at += size + size % 2;
  }
  throw std::runtime_error(path + " holds no samples");
}

double seconds(const google::protobuf::Duration& duration) { return duration.seconds() + duration.nanos() / 1e9; }

void show(const v1::StreamingAnalyzeResponse& answer) {
  if (answer.has_utterance_result()) {
    const auto& result = answer.utterance_result();
    std::cout << (result.is_final() ? "final " : "interim ") << seconds(result.start_offset()) << ' '
              << seconds(result.end_offset());
    if (result.has_emotion())  // ask has_… first: unset reads as 0
      std::cout << " valence " << result.emotion().valence() << " arousal " << result.emotion().arousal() << std::endl;
    else
      std::cout << " no emotion" << std::endl;
  } else if (answer.has_stream_warning()) {
    std::cout << "warning " << answer.stream_warning().reason() << ": " << answer.stream_warning().message() << std::endl;
  } else if (answer.has_turn_result()) {
    std::cout << "turn " << answer.turn_result().utterance_count() << " utterances" << std::endl;
  } else if (answer.has_stream_started() && answer.stream_started().synthetic_model()) {
    std::cout << "synthetic model: tells you nothing about real people" << std::endl;
  }
}

// Reason, field and message; what no kibun server made (a lost connection) has neither reason nor field.
std::string explain(const grpc::Status& status) {
  std::string reason = "gRPC code " + std::to_string(status.error_code()), field;
  google::rpc::Status details;
  details.ParseFromString(status.error_details());  // the trailer grpc-status-details-bin
  for (const auto& detail : details.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest request;
    if (detail.UnpackTo(&info)) reason = info.reason();
    if (detail.UnpackTo(&request) && request.field_violations_size() > 0)
      field = " (" + request.field_violations(0).field() + ")";
  }
  return reason + field + ": " + status.error_message();
}

int main(int argc, char** argv) try {
  std::string server = "127.0.0.1:50051", file = "speech.wav", model, token;
  if (const char* known = std::getenv("KIBUN_TOKEN")) token = known;
  bool live = false;  // as fast as it was spoken: only then are there interims
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--live") live = true;
    else if (word == "--server" && i + 1 < argc) server = argv[++i];
    else if (word == "--model" && i + 1 < argc) model = argv[++i];
    else if (word == "--token" && i + 1 < argc) token = argv[++i];
    else if (word.rfind("--", 0) == 0) throw std::runtime_error("not an option, or without its value: " + word);
    else file = word;
  }
  const Recording recording = read_wav(file);
  const auto channel = grpc::CreateChannel(server, grpc::InsecureChannelCredentials());  // TLS: SslCredentials({})
  const auto stub = v1::SpeechAnalysisService::NewStub(channel);
  const auto authorize = [&](grpc::ClientContext& context) {
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
  };

  grpc::ClientContext asking;
  authorize(asking);
  asking.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  v1::GetServiceInfoResponse info;
  if (const auto status = stub->GetServiceInfo(&asking, {}, &info); !status.ok())
    throw std::runtime_error(explain(status));
  const size_t block = std::min(2 * (recording.rate / 10), info.max_audio_content_bytes());  // 100 ms

  std::cout << std::fixed << std::setprecision(2);
  grpc::ClientContext context;
  authorize(context);
  const auto stream = stub->StreamingAnalyze(&context);
  std::thread writer([&] {
    v1::StreamingAnalyzeRequest request;
    auto& config = *request.mutable_streaming_config();
    config.mutable_audio_config()->set_encoding(v1::AUDIO_ENCODING_LINEAR16);
    config.mutable_audio_config()->set_sample_rate_hertz(recording.rate);
    config.mutable_features()->set_interim_results(true);
    config.set_model(model);
    bool open = stream->Write(request);
    for (size_t at = 0; open && at < recording.samples.size(); at += block) {
      request.set_audio_content(recording.samples.substr(at, block));
      open = stream->Write(request);  // waits while the server is slow; false: the call has ended
      if (live) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    stream->WritesDone();
  });
  v1::StreamingAnalyzeResponse answer;
  while (stream->Read(&answer)) show(answer);
  writer.join();
  if (const auto status = stream->Finish(); !status.ok()) throw std::runtime_error(explain(status));
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return 1;
}
