// Streams, events, and when queued work runs.
#include <algorithm>
#include <chrono>

#include "driver.h"

namespace driver {

static Stream default_stream{true, {}, nullptr, nullptr, {}};
// Also those that were destroyed with work queued.
static std::vector<Stream *> &all_streams = *new std::vector<Stream *>{&default_stream};

Stream *stream_of(void *handle) {
    if (!handle) return &default_stream;
    return alive().streams.count(handle) ? (Stream *)handle : nullptr;
}
static Event *event_of(void *handle) {
    return alive().events.count(handle) ? (Event *)handle : nullptr;
}

void run_work(const Work &work) {
    if (sticky() || hangs() || !work.run) return;
    Opened opened;
    running = work.name.c_str();
    work.run();
    running = nullptr;
}

// Returns whether it is done.
static bool run_head(Stream *stream, bool wait = false) {
    OperationRef head = stream->queue.front();
    if (head->work->arrived && !sticky() && !hangs() && !head->work->arrived(wait)) return false;
    run_work(*head->work);
    if (hangs()) return false;
    head->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    head->done = true;
    head->after.clear();
    stream->queue.pop_front();
    return true;
}

// Runs `operation` and what has to run before it, nothing else.
static void require(const OperationRef &operation) {
    while (!operation->done) {
        waits_for_ever();
        auto after = operation->stream->queue.front()->after;
        for (auto &other : after) require(other);
        run_head(operation->stream, true);
    }
}

void drain(Stream *stream) {
    if (stream->last) {
        Opened opened;
        require(stream->last);
    }
}
void drain() {
    Opened opened;
    for (Stream *stream : all_streams) drain(stream);
}

static bool is_ready(Stream *stream) {
    if (stream->queue.empty() || hangs()) return false;
    auto &after = stream->queue.front()->after;
    return std::all_of(after.begin(), after.end(), [](auto &other) { return other->done; });
}

void a_call_passes() {
    if (settings().mode != Mode::Random) return;
    while (random_below(3) != 0) {
        std::vector<Stream *> ready;
        std::copy_if(all_streams.begin(), all_streams.end(), std::back_inserter(ready), is_ready);
        if (ready.empty()) return;
        Stream *stream = ready[random_below(ready.size())];
        for (uint64_t steps = 1 + random_below(6); steps > 0 && is_ready(stream); steps--) {
            if (!run_head(stream)) break;
        }
    }
}

int enqueue(Stream *stream, Work work, std::vector<OperationRef> after, OperationRef *queued) {
    if (stream->capture) return add_node(stream, std::move(work));
    if (stream->blocking) {
        // The default stream and the blocking ones wait for each other.
        for (Stream *other : all_streams) {
            if (other == stream || !other->blocking || (stream != &default_stream && other != &default_stream)) continue;
            if (other->capture) return invalidate(*other->capture), STREAM_CAPTURE_IMPLICIT;
            if (other->last && !other->last->done) after.push_back(other->last);
        }
    }
    auto operation = std::make_shared<Operation>(
        Operation{std::make_shared<Work>(std::move(work)), stream, std::move(after), false, 0});
    stream->queue.push_back(operation);
    stream->last = operation;
    if (queued) *queued = operation;
    // No call of this mode leaves work behind, unless a kernel does not end or other ranks are waited for: the call itself does not
    // wait for them.
    while (settings().mode == Mode::Eager && is_ready(stream) && run_head(stream)) {
    }
    return SUCCESS;
}

size_t graphs_beside(const OperationRef &operation) {
    std::vector<OperationRef> before{operation};
    std::unordered_set<const Operation *> seen{operation.get()};
    auto add = [&](const OperationRef &other) {
        if (!other->done && seen.insert(other.get()).second) before.push_back(other);
    };
    for (size_t at = 0; at < before.size(); at++) {
        auto found = before[at];
        for (auto &other : found->after) add(other);
        for (auto &other : found->stream->queue) {
            if (other == found) break;
            add(other);
        }
    }
    size_t beside = 0;
    for (Stream *stream : all_streams) {
        for (auto &other : stream->queue) beside += other->work->name == "a graph" && !seen.count(other.get());
    }
    return beside;
}

bool uses_memory(const void *start, size_t bytes, std::string *who) {
    for (Stream *stream : all_streams) {
        for (auto &operation : stream->queue) {
            for (auto &use : operation->work->uses) {
                bool apart = (const char *)use.start + use.bytes <= (const char *)start ||
                             (const char *)start + bytes <= (const char *)use.start;
                if (!apart) return *who = operation->work->name, true;
            }
        }
    }
    return false;
}

// Whether it is done; asking lets a little work run of what has to run before it, or a program that asks again and again
// would never end.
static bool ask(const OperationRef &operation) {
    if (!operation || operation->done || hangs()) return !operation || operation->done;
    Stream *stream = operation->stream;
    for (;;) {
        auto &after = stream->queue.front()->after;
        auto other = std::find_if(after.begin(), after.end(), [](auto &other) { return !other->done; });
        if (other == after.end()) break;
        stream = (*other)->stream;
    }
    run_head(stream);
    return operation->done;
}

}  // namespace driver

using namespace driver;

API cuStreamCreate(void **handle, unsigned flags) {
    Call call;
    if (call.error) return call.error;
    if (flags > 1) return INVALID_VALUE;
    auto stream = new Stream{flags == 0, {}, nullptr, nullptr, {}};
    all_streams.push_back(stream);
    alive().streams.insert(stream);
    *handle = stream;
    return SUCCESS;
}

// Returns at once; the work that is queued still runs, some time.
API cuStreamDestroy_v2(void *handle) {
    Call call;
    if (call.error) return call.error;
    Stream *stream = handle ? stream_of(handle) : nullptr;
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) invalidate(*stream->capture);
    alive().streams.erase(stream);
    return SUCCESS;
}

API cuStreamSynchronize(void *handle) {
    Call call;
    if (call.error) return call.error;
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) return invalidate(*stream->capture), STREAM_CAPTURE_UNSUPPORTED;
    drain(stream);
    return sticky();
}

API cuStreamQuery(void *handle) {
    Call call;
    if (call.error) return call.error;
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) return invalidate(*stream->capture), STREAM_CAPTURE_UNSUPPORTED;
    return ask(stream->last) ? sticky() : NOT_READY;
}

API cuStreamWaitEvent(void *handle, void *event_handle, unsigned flags) {
    Call call;
    if (call.error) return call.error;
    Stream *stream = stream_of(handle);
    Event *event = event_of(event_handle);
    if (!stream || !event) return INVALID_HANDLE;
    if (flags) return INVALID_VALUE;
    if (event->capture) {
        auto &capture = event->capture;
        if (capture->ended) return CAPTURED_EVENT;
        if (capture->invalid) return STREAM_CAPTURE_INVALIDATED;
        if (stream->capture && stream->capture != capture) {
            invalidate(*stream->capture);
            invalidate(*capture);
            return STREAM_CAPTURE_MERGE;
        }
        if (!stream->capture) {
            stream->capture = capture;
            stream->frontier.clear();
            capture->streams.push_back(stream);
        }
        for (size_t node : event->frontier) {
            auto &frontier = stream->frontier;
            if (std::find(frontier.begin(), frontier.end(), node) == frontier.end()) frontier.push_back(node);
        }
        return SUCCESS;
    }
    if (stream->capture) return invalidate(*stream->capture), STREAM_CAPTURE_ISOLATION;
    if (!event->recorded) return SUCCESS;
    return enqueue(stream, {"a wait for an event", nullptr, {}}, {event->recorded});
}

API cuEventCreate(void **handle, unsigned flags) {
    Call call;
    if (call.error) return call.error;
    if (flags & ~7u) return INVALID_VALUE;
    auto event = new Event{!(flags & 2), nullptr, nullptr, {}};
    alive().events.insert(event);
    *handle = event;
    return SUCCESS;
}

API cuEventDestroy_v2(void *handle) {
    Call call;
    if (call.error) return call.error;
    return alive().events.erase(handle) ? SUCCESS : INVALID_HANDLE;
}

API cuEventRecord(void *handle, void *stream_handle) {
    Call call;
    if (call.error) return call.error;
    Event *event = event_of(handle);
    Stream *stream = stream_of(stream_handle);
    if (!event || !stream) return INVALID_HANDLE;
    if (stream->capture) {
        if (stream->capture->invalid) return STREAM_CAPTURE_INVALIDATED;
        event->capture = stream->capture;
        event->frontier = stream->frontier;
        event->recorded = nullptr;
        return SUCCESS;
    }
    event->capture = nullptr;
    return enqueue(stream, {"an event", nullptr, {}}, {}, &event->recorded);
}

API cuEventSynchronize(void *handle) {
    Call call;
    if (call.error) return call.error;
    Event *event = event_of(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) return invalidate(*event->capture), CAPTURED_EVENT;
    if (event->recorded) {
        Opened opened;
        require(event->recorded);
    }
    return sticky();
}

API cuEventQuery(void *handle) {
    Call call;
    if (call.error) return call.error;
    if (int error = forbidden_while_capturing()) return error;
    Event *event = event_of(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) return invalidate(*event->capture), CAPTURED_EVENT;
    return ask(event->recorded) ? sticky() : NOT_READY;
}

static int elapsed(float *milliseconds, void *start_handle, void *end_handle) {
    Call call;
    if (call.error) return call.error;
    Event *start = event_of(start_handle), *end = event_of(end_handle);
    if (!start || !end || !start->timed || !end->timed || !start->recorded || !end->recorded) return INVALID_HANDLE;
    if (!start->recorded->done || !end->recorded->done) return NOT_READY;
    *milliseconds = (float)((end->recorded->seconds - start->recorded->seconds) * 1e3);
    return SUCCESS;
}
API cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    return elapsed(milliseconds, start, end);
}
API cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) {
    return elapsed(milliseconds, start, end);
}
