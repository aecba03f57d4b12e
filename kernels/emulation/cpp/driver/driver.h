// What the files of the emulated driver share. README.md says what it is.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

// CUresult, as cuda.h numbers it.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_MERGE = 902,
    STREAM_CAPTURE_UNMATCHED = 903,
    STREAM_CAPTURE_UNJOINED = 904,
    STREAM_CAPTURE_ISOLATION = 905,
    STREAM_CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    STREAM_CAPTURE_WRONG_THREAD = 908,
};

#define API extern "C" __attribute__((visibility("default"))) int

namespace driver {

// When queued work runs.
enum class Mode {
    Eager,   // at the call
    Lazy,    // when something waits for it
    Random,  // a random part of it at each call
};

// The environment's wishes; README.md lists the variables.
struct Settings {
    Mode mode;
    uint64_t seed;
    int major, minor, devices, version;
    size_t memory;
    uint64_t failing_allocation, failing_launch, trapping_launch, hanging_launch;
    bool reuse, leaks;
    std::string report;
};
const Settings &settings();
// A number below `below`, from the seed.
uint64_t random_below(uint64_t below);

// Ends the process: the program did what a real driver would not have noticed, or only by wrong results.
[[noreturn]] void violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
// Prints a line of the report.
void count(const std::string &what);

// A call of the API: holds the lock, and knows what speaks against going on.
struct Call {
    int error;
    explicit Call(bool needs_context = true);
    ~Call();
};
// The device whose context is the thread's current one; -1 without.
int current_device();
void set_sticky(int error);
int sticky();
// A kernel has begun that never ends: whatever waits for the device waits for ever, which ends the process.
void hang(const std::string &kernel);
bool hangs();
void waits_for_ever();

// Memory that queued work reads or writes.
struct Use {
    const void *start;
    size_t bytes;
};
struct Work {
    std::string name;
    std::function<void()> run;
    std::vector<Use> uses;
    // Whether it can end: an exchange waits for other ranks, and asking for the first time begins it. Null for all other work.
    std::function<bool(bool wait)> arrived = nullptr;
};

struct Stream;
struct Operation {
    std::shared_ptr<Work> work;
    Stream *stream;
    std::vector<std::shared_ptr<Operation>> after;
    bool done;
    double seconds;  // when it ran
};
using OperationRef = std::shared_ptr<Operation>;

// A node of a graph, after those it depends on.
struct Node {
    std::shared_ptr<Work> work;
    std::vector<size_t> after;
};
struct Capture {
    Stream *origin;
    int mode;
    std::thread::id thread;
    std::vector<Node> nodes;
    std::vector<Stream *> streams;
    bool invalid, ended;
};
struct Stream {
    bool blocking;
    std::deque<OperationRef> queue;
    OperationRef last;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> frontier;  // of the capture: what the stream's next node depends on
};
struct Event {
    bool timed;
    OperationRef recorded;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> frontier;
};

// Streams and their work (streams.cpp).
Stream *stream_of(void *handle);  // null if there is none
int enqueue(Stream *stream, Work work, std::vector<OperationRef> after = {}, OperationRef *queued = nullptr);
void drain();                             // all streams
void drain(Stream *stream);               // one, and what it waits for
void a_call_passes();                     // lets a random part of the work run
// Graphs that are queued and that `operation`, queued last on `stream`, need not wait for.
size_t graphs_beside(const OperationRef &operation);
bool uses_memory(const void *start, size_t bytes, std::string *who);
void run_work(const Work &work);

// Captures (graphs.cpp).
int add_node(Stream *stream, Work work);
void invalidate(Capture &capture);
// What is forbidden to this thread while a stream is captured other than relaxed.
int forbidden_while_capturing();
bool any_capture();

// Memory (memory.cpp).
struct Opened {  // the device's memory can be touched as long as one exists
    Opened();
    ~Opened();
};
bool is_allocated(const void *start, size_t bytes);
bool is_mapped(const void *address);  // pinned memory that kernels may use
bool in_device_region(const void *address);
void check_red_zones(const char *after);
void install_fault_handler();
extern const char *volatile running;

// What is alive, for the report of leaks.
struct Alive {
    std::unordered_set<void *> streams, events, graphs, executables, modules;
};
Alive &alive();
size_t allocations_alive();
size_t pinned_alive();

}  // namespace driver
