// Capturing streams into graphs, and running those.
#include <algorithm>

#include "driver.h"

namespace driver {

struct Graph {
    std::vector<Node> nodes;
};
static std::vector<std::shared_ptr<Capture>> &captures = *new std::vector<std::shared_ptr<Capture>>;  // under way

bool any_capture() {
    return !captures.empty();
}

void invalidate(Capture &capture) {
    capture.invalid = true;
}

int forbidden_while_capturing() {
    enum { GLOBAL, THREAD_LOCAL, RELAXED };
    for (auto &capture : captures) {
        bool concerns = capture->mode == GLOBAL || (capture->mode == THREAD_LOCAL && capture->thread == std::this_thread::get_id());
        if (concerns) return invalidate(*capture), STREAM_CAPTURE_UNSUPPORTED;
    }
    return SUCCESS;
}

int add_node(Stream *stream, Work work) {
    Capture &capture = *stream->capture;
    if (capture.invalid) return STREAM_CAPTURE_INVALIDATED;
    capture.nodes.push_back({std::make_shared<Work>(std::move(work)), stream->frontier});
    stream->frontier = {capture.nodes.size() - 1};
    return SUCCESS;
}

// Whether all that the forked streams did happens before what the origin did last.
static bool is_joined(const Capture &capture) {
    std::vector<bool> before(capture.nodes.size());
    std::vector<size_t> open = capture.origin->frontier;
    while (!open.empty()) {
        size_t node = open.back();
        open.pop_back();
        if (before[node]) continue;
        before[node] = true;
        open.insert(open.end(), capture.nodes[node].after.begin(), capture.nodes[node].after.end());
    }
    return std::all_of(capture.streams.begin(), capture.streams.end(), [&](Stream *stream) {
        return std::all_of(stream->frontier.begin(), stream->frontier.end(), [&](size_t node) { return before[node]; });
    });
}

// All nodes, each after those it depends on. Among those that could run next: the oldest, the youngest or any, by mode.
static void run_nodes(const std::vector<Node> &nodes) {
    std::vector<bool> done(nodes.size());
    for (size_t count = 0; count < nodes.size(); count++) {
        std::vector<size_t> ready;
        for (size_t at = 0; at < nodes.size(); at++) {
            auto &after = nodes[at].after;
            if (!done[at] && std::all_of(after.begin(), after.end(), [&](size_t other) { return done[other]; })) ready.push_back(at);
        }
        size_t next = settings().mode == Mode::Eager ? ready.front()
                      : settings().mode == Mode::Lazy ? ready.back()
                                                      : ready[random_below(ready.size())];
        run_work(*nodes[next].work);
        done[next] = true;
    }
}

}  // namespace driver

using namespace driver;

API cuStreamBeginCapture_v2(void *handle, int mode) {
    Call call;
    if (call.error) return call.error;
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (mode < 0 || mode > 2) return INVALID_VALUE;
    if (!handle || stream->capture) return STREAM_CAPTURE_UNSUPPORTED;
    auto capture = std::make_shared<Capture>(Capture{stream, mode, std::this_thread::get_id(), {}, {stream}, false, false});
    stream->capture = capture;
    stream->frontier.clear();
    captures.push_back(capture);
    return SUCCESS;
}

API cuStreamIsCapturing(void *handle, int *status) {
    Call call;
    if (call.error) return call.error;
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return SUCCESS;
}

API cuStreamEndCapture(void *handle, void **graph) {
    Call call;
    if (call.error) return call.error;
    Stream *stream = stream_of(handle);
    if (!stream || !graph) return INVALID_HANDLE;
    auto capture = stream->capture;
    *graph = nullptr;
    if (!capture) return INVALID_VALUE;
    if (capture->origin != stream) return invalidate(*capture), STREAM_CAPTURE_UNMATCHED;
    if (capture->mode != 2 && capture->thread != std::this_thread::get_id()) return STREAM_CAPTURE_WRONG_THREAD;
    int error = capture->invalid ? STREAM_CAPTURE_INVALIDATED : is_joined(*capture) ? SUCCESS : STREAM_CAPTURE_UNJOINED;
    capture->ended = true;
    for (Stream *other : capture->streams) other->capture = nullptr;
    captures.erase(std::find(captures.begin(), captures.end(), capture));
    if (error) return error;
    auto made = new Graph{std::move(capture->nodes)};
    alive().graphs.insert(made);
    *graph = made;
    return SUCCESS;
}

API cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    Call call;
    if (call.error) return call.error;
    if (!alive().graphs.count(graph)) return INVALID_HANDLE;
    if (flags) violation("flags of a graph are not emulated");
    auto made = new Graph(*(Graph *)graph);
    alive().executables.insert(made);
    *executable = made;
    count("graphs");
    return SUCCESS;
}

API cuGraphLaunch(void *executable, void *handle) {
    Call call;
    if (call.error) return call.error;
    Stream *stream = stream_of(handle);
    if (!stream || !alive().executables.count(executable)) return INVALID_HANDLE;
    if (stream->capture) violation("a graph within a graph is not emulated");
    count("graph-launches");
    auto nodes = ((Graph *)executable)->nodes;
    std::vector<Use> uses;
    for (auto &node : nodes) uses.insert(uses.end(), node.work->uses.begin(), node.work->uses.end());
    return enqueue(stream, {"a graph", [nodes] { run_nodes(nodes); }, uses});
}

API cuGraphDestroy(void *graph) {
    Call call;
    if (call.error) return call.error;
    return alive().graphs.erase(graph) ? SUCCESS : INVALID_HANDLE;
}

API cuGraphExecDestroy(void *executable) {
    Call call;
    if (call.error) return call.error;
    return alive().executables.erase(executable) ? SUCCESS : INVALID_HANDLE;
}
