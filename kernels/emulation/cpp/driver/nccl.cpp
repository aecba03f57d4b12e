// The part of NCCL that is used, a library of its own: ranks are processes of one machine, which a hub connects over a Unix socket.
//
// A thread of the process that makes the unique id is the hub (with NCCL_COMM_ID: of rank 0). Every group of sends and receives goes
// there as one message, and the hub answers none before it has those of all ranks and they match: what rank a sends to rank b, rank b
// receives from rank a, in the same order, the same number of the same type. Nothing blocks: calls end when they are asked after.
#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <poll.h>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>
#include <unordered_set>
#include <vector>

#include "transfers.h"

namespace {

enum Status {
    SUCCESS = 0,
    UNHANDLED_CUDA_ERROR = 1,
    SYSTEM_ERROR = 2,
    INVALID_ARGUMENT = 4,
    INVALID_USAGE = 5,
    REMOTE_ERROR = 6,
    IN_PROGRESS = 7,
};
constexpr int CUDA_CAPTURE_UNSUPPORTED = 900;
constexpr int PATIENCE_MS = 60'000;  // of the host that waits for other ranks without asking NCCL: a real one waits for ever

struct UniqueId {
    char name[128];
};
// ncclConfig_t of NCCL 2.14.
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking;
};

thread_local std::string last_error;

Status refuse(Status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
Status refuse(Status status, const char *format, ...) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    last_error = text;
    return status;
}

// Messages: their kind, their length, and as many bytes.
enum Kind : uint32_t { HELLO, WELCOME, GROUP, RECEIVED, MISMATCH, LOST, REFUSED, FINALIZE, BYE };
struct Header {
    uint32_t kind;
    uint64_t bytes;
};

bool transfer_all(int socket, char *bytes, size_t count, bool reads) {
    while (count > 0) {
        ssize_t moved = reads ? read(socket, bytes, count) : ::send(socket, bytes, count, MSG_NOSIGNAL);
        if (moved < 0 && errno == EINTR) continue;
        if (moved <= 0) return false;
        bytes += moved;
        count -= (size_t)moved;
    }
    return true;
}
bool give(int socket, uint32_t kind, std::string content) {
    Header header{kind, content.size()};
    return transfer_all(socket, (char *)&header, sizeof header, false) && transfer_all(socket, content.data(), content.size(), false);
}
bool take(int socket, uint32_t &kind, std::string &content) {
    Header header{};
    if (!transfer_all(socket, (char *)&header, sizeof header, true)) return false;
    kind = header.kind;
    content.resize(header.bytes);
    return transfer_all(socket, content.data(), content.size(), true);
}
bool is_readable(int socket, int milliseconds) {
    pollfd one{socket, POLLIN, 0};
    return poll(&one, 1, milliseconds) > 0;
}

// One of a group's calls.
struct Op {
    int sends, peer, type;
    uint64_t count;
};
constexpr size_t SIZES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};  // of ncclInt8, ncclUint8, …
const char *TYPES[] = {"int8", "uint8", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", "bfloat16"};
size_t bytes_of(const Op &op) {
    return op.count * SIZES[op.type];
}
struct Hello {
    int ranks, rank, device;
};

template <class T>
void append(std::string &message, const T &value) {
    message.append((const char *)&value, sizeof value);
}
template <class T>
T cut(const std::string &message, size_t &at) {
    T value;
    std::memcpy(&value, message.data() + at, sizeof value);
    at += sizeof value;
    return value;
}

// The thread that connects the ranks of one communicator.
struct Hub {
    int listener;
    std::vector<int> sockets;        // by rank
    std::vector<std::string> group;  // what each rank has given of the present group
    std::vector<bool> has_given, has_ended;

    void tell(uint32_t kind, const std::string &text) {
        for (int socket : sockets) give(socket, kind, text);
    }

    // All ranks, or why they cannot be connected.
    bool gather() {
        std::vector<Hello> hellos;
        do {
            int socket = accept(listener, nullptr, nullptr);
            uint32_t kind;
            std::string content;
            if (socket < 0 || !take(socket, kind, content) || kind != HELLO) return false;
            size_t at = 0;
            hellos.push_back(cut<Hello>(content, at));
            sockets.push_back(socket);
            if (hellos.back().ranks != hellos[0].ranks) return tell(REFUSED, "the ranks do not agree on how many they are"), false;
        } while ((int)hellos.size() < hellos[0].ranks);
        std::vector<int> by_rank(sockets.size(), -1);
        for (size_t at = 0; at < hellos.size(); at++) {
            Hello &one = hellos[at];
            if (one.rank < 0 || one.rank >= one.ranks || by_rank[(size_t)one.rank] >= 0) {
                return tell(REFUSED, "rank " + std::to_string(one.rank) + " is there twice"), false;
            }
            for (size_t other = 0; other < at; other++) {
                if (hellos[other].device == one.device) {
                    return tell(REFUSED, "Duplicate GPU detected : rank " + std::to_string(one.rank) + " and rank " +
                                             std::to_string(hellos[other].rank) + " both on CUDA device " +
                                             std::to_string(one.device)),
                           false;
                }
            }
            by_rank[(size_t)one.rank] = sockets[at];
        }
        sockets = by_rank;
        group.resize(sockets.size());
        has_given.resize(sockets.size());
        has_ended.resize(sockets.size());
        tell(WELCOME, "");
        return true;
    }

    static std::string written(const Op &op) {
        return std::to_string(op.count) + " of " + TYPES[op.type];
    }

    // Why the ranks' groups do not match; empty if they do, and then `received` has what each of them receives.
    std::string match(std::vector<std::string> &received) {
        size_t ranks = sockets.size();
        struct Sent {
            Op op;
            const char *bytes;
            bool taken;
        };
        std::vector<std::vector<std::vector<Sent>>> sent(ranks, std::vector<std::vector<Sent>>(ranks));
        std::vector<std::vector<Op>> ops(ranks);
        for (size_t rank = 0; rank < ranks; rank++) {
            size_t at = 0;
            auto count = cut<uint64_t>(group[rank], at);
            for (uint64_t n = 0; n < count; n++) ops[rank].push_back(cut<Op>(group[rank], at));
            for (auto &op : ops[rank]) {
                if (!op.sends) continue;
                sent[rank][(size_t)op.peer].push_back({op, group[rank].data() + at, false});
                at += bytes_of(op);
            }
        }
        for (size_t rank = 0; rank < ranks; rank++) {
            for (auto &op : ops[rank]) {
                if (op.sends) continue;
                auto &from = sent[(size_t)op.peer][rank];
                size_t next = 0;
                while (next < from.size() && from[next].taken) next++;
                std::string who = "rank " + std::to_string(rank) + " expects " + written(op) + " from rank " + std::to_string(op.peer);
                if (next == from.size()) return who + ", which sends nothing more";
                Sent &one = from[next];
                one.taken = true;
                if (one.op.type != op.type || one.op.count != op.count) return who + ", which sends " + written(one.op);
                received[rank].append(one.bytes, bytes_of(op));
            }
        }
        for (size_t from = 0; from < ranks; from++) {
            for (size_t to = 0; to < ranks; to++) {
                for (auto &one : sent[from][to]) {
                    if (!one.taken) {
                        return "rank " + std::to_string(from) + " sends " + written(one.op) + " to rank " + std::to_string(to) +
                               ", which expects nothing more";
                    }
                }
            }
        }
        return "";
    }

    void serve() {
        if (!gather()) return linger();
        for (;;) {
            std::vector<pollfd> all;
            for (int socket : sockets) all.push_back({socket, POLLIN, 0});
            if (poll(all.data(), all.size(), -1) < 0) continue;
            for (size_t rank = 0; rank < sockets.size(); rank++) {
                if (!all[rank].revents) continue;
                uint32_t kind;
                std::string content;
                std::string who = "rank " + std::to_string(rank);
                if (!take(sockets[rank], kind, content)) return tell(LOST, who + " has ended"), linger();
                if (has_given[rank] || has_ended[rank]) return tell(MISMATCH, who + " does not wait for the others"), linger();
                (kind == FINALIZE ? has_ended : has_given)[rank] = true;
                group[rank] = std::move(content);
            }
            bool all_gave = true, all_ended = true, any_gave = false, any_ended = false;
            for (size_t rank = 0; rank < sockets.size(); rank++) {
                all_gave = all_gave && has_given[rank];
                all_ended = all_ended && has_ended[rank];
                any_gave = any_gave || has_given[rank];
                any_ended = any_ended || has_ended[rank];
            }
            if (any_gave && any_ended) return tell(MISMATCH, "some ranks part while others exchange"), linger();
            if (all_ended) {
                // The process of the hub last: it may end then.
                for (size_t rank = sockets.size(); rank-- > 0;) give(sockets[rank], BYE, "");
                return;
            }
            if (!all_gave) continue;
            std::vector<std::string> received(sockets.size());
            std::string wrong = match(received);
            if (!wrong.empty()) return tell(MISMATCH, wrong), linger();
            for (size_t rank = 0; rank < sockets.size(); rank++) {
                has_given[rank] = false;
                give(sockets[rank], RECEIVED, std::move(received[rank]));
            }
        }
    }

    // The others are to read what they were told.
    void linger() {
        for (;;) pause();
    }
};

// An address of the kernel's own, which no file has to be removed for.
socklen_t address_of(const std::string &name, sockaddr_un &address) {
    address = {};
    address.sun_family = AF_UNIX;
    std::string path = "emulated-nccl-" + name;
    std::memcpy(address.sun_path + 1, path.data(), path.size());
    return (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + path.size());
}

bool start_hub(const std::string &name) {
    sockaddr_un address;
    socklen_t length = address_of(name, address);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (sockaddr *)&address, length) || listen(listener, 64)) return false;
    std::thread([listener] { (new Hub{listener, {}, {}, {}, {}})->serve(); }).detach();
    return true;
}

struct Comm {
    std::string name;
    Hello hello;
    int socket = -1;
    bool connected = false, finalizing = false, ended = false;
    Status failed = SUCCESS;
    std::string reason;
    // A group that was ended but not queued: that happens when it is asked after.
    std::vector<std::function<int()>> pending;
    // Answers to groups, in their order.
    uint64_t given = 0, taken = 0;
    std::vector<std::string> answers;
    std::mutex lock;
};

std::mutex &comms_lock = *new std::mutex;
std::unordered_set<Comm *> &comms = *new std::unordered_set<Comm *>;

Comm *comm_of(void *handle) {
    std::lock_guard<std::mutex> guard(comms_lock);
    return comms.count((Comm *)handle) ? (Comm *)handle : nullptr;
}

void fail(Comm *comm, Status status, const std::string &reason) {
    if (comm->failed != SUCCESS) return;
    comm->failed = status;
    comm->reason = reason;
}

// Reads what has come; with `milliseconds` waits so long for it.
void listen_to_hub(Comm *comm, int milliseconds) {
    while (comm->socket >= 0 && comm->failed == SUCCESS && is_readable(comm->socket, milliseconds)) {
        milliseconds = 0;
        uint32_t kind;
        std::string content;
        if (!take(comm->socket, kind, content)) {
            if (!comm->ended) fail(comm, REMOTE_ERROR, "the connection with the first rank was closed");
            return;
        }
        switch (kind) {
            case WELCOME: comm->connected = true; break;
            case RECEIVED: comm->answers.push_back(std::move(content)); break;
            case BYE: comm->ended = true; break;
            case REFUSED: fail(comm, INVALID_USAGE, content); break;
            case LOST: fail(comm, REMOTE_ERROR, content); break;
            // A real one would move wrong bytes or wait for ever.
            case MISMATCH: emulated_violation(("NCCL: " + content).c_str());
        }
    }
}

void say_hello(Comm *comm) {
    sockaddr_un address;
    socklen_t length = address_of(comm->name, address);
    int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (made < 0) return;
    if (connect(made, (sockaddr *)&address, length)) {
        close(made);  // the first rank is not there yet
        return;
    }
    std::string message;
    append(message, comm->hello);
    comm->socket = made;
    if (!give(made, HELLO, message)) fail(comm, REMOTE_ERROR, "the first rank has ended");
}

// Goes on with what was begun.
Status progress(Comm *comm) {
    if (comm->failed != SUCCESS) return comm->failed;
    if (comm->socket < 0) say_hello(comm);
    listen_to_hub(comm, 0);
    if (comm->failed != SUCCESS) return comm->failed;
    if (!comm->connected || (comm->finalizing && !comm->ended)) return IN_PROGRESS;
    return comm->failed;
}

struct Call {
    Comm *comm;
    Op op;
    char *address;
    void *stream;
};
thread_local int depth;
thread_local std::vector<Call> calls;

// What a stream does when it comes to a group.
int queue_group(Comm *comm, void *stream, const std::vector<Call> &group) {
    std::vector<EmulatedMemory> uses;
    for (auto &call : group) uses.push_back({call.address, bytes_of(call.op)});
    auto number = std::make_shared<uint64_t>();
    auto begin = [=] {
        std::lock_guard<std::mutex> guard(comm->lock);
        std::string message;
        append(message, (uint64_t)group.size());
        for (auto &call : group) append(message, call.op);
        for (auto &call : group) {
            if (call.op.sends) message.append(call.address, bytes_of(call.op));
        }
        *number = comm->given++;
        if (comm->failed == SUCCESS && !give(comm->socket, GROUP, std::move(message))) {
            fail(comm, REMOTE_ERROR, "the connection with the first rank was closed");
        }
    };
    auto arrived = [=](bool wait) {
        std::lock_guard<std::mutex> guard(comm->lock);
        for (int waited = 0; comm->answers.size() <= *number && comm->socket >= 0; waited += 10) {
            listen_to_hub(comm, wait ? 10 : 0);
            if (!wait) break;
            if (comm->failed != SUCCESS || waited > PATIENCE_MS) {
                emulated_violation("the host waits for ever, as an exchange with other ranks does not end");
            }
        }
        // An aborted communicator's work ends.
        return comm->answers.size() > *number || comm->socket < 0;
    };
    auto end = [=] {
        std::lock_guard<std::mutex> guard(comm->lock);
        if (comm->answers.size() <= *number) return;
        std::string answer = std::move(comm->answers[*number]);
        size_t at = 0;
        for (auto &call : group) {
            if (call.op.sends) continue;
            std::memcpy(call.address, answer.data() + at, bytes_of(call.op));
            at += bytes_of(call.op);
        }
        comm->taken++;
    };
    return emulated_exchange(stream, begin, arrived, end, uses.data(), uses.size());
}

Status add(bool sends, void *address, size_t count, int type, int peer, void *handle, void *stream) {
    Comm *comm = comm_of(handle);
    if (!comm) return refuse(INVALID_ARGUMENT, "this is no communicator");
    if (depth == 0) return refuse(INVALID_USAGE, "a single transfer outside of a group is not emulated");
    if (!comm->connected) return refuse(INVALID_USAGE, "the communicator is not connected yet");
    if (peer < 0 || peer >= comm->hello.ranks) return refuse(INVALID_ARGUMENT, "there is no rank %d", peer);
    if (type < 0 || type > 9) return refuse(INVALID_ARGUMENT, "there is no type %d", type);
    if (!emulated_is_allocated(address, count * SIZES[type])) return refuse(INVALID_ARGUMENT, "%p is not the device's memory", address);
    calls.push_back({comm, {sends, peer, type, count}, (char *)address, stream});
    return SUCCESS;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API int ncclGetVersion(int *version) {
    const char *asked = std::getenv("CUDA_EMULATION_NCCL_VERSION");
    *version = asked && *asked ? std::atoi(asked) : 22705;
    return SUCCESS;
}

API int ncclGetUniqueId(UniqueId *id) {
    std::memset(id, 0, sizeof *id);
    const char *meeting = std::getenv("NCCL_COMM_ID");
    if (meeting && *meeting) {
        std::snprintf(id->name, sizeof id->name, "at %s", meeting);
        return SUCCESS;
    }
    static int made;
    std::snprintf(id->name, sizeof id->name, "%d-%d", (int)getpid(), made++);
    return start_hub(id->name) ? SUCCESS : refuse(SYSTEM_ERROR, "cannot listen");
}

API int ncclCommInitRankConfig(Comm **place, int ranks, UniqueId id, int rank, Config *config) {
    if (!config || config->magic != 0xcafebeef || config->size < 20 || config->version < 21400) {
        return refuse(INVALID_ARGUMENT, "this is no configuration");
    }
    if (config->blocking != 0) emulated_violation("communicators whose calls block are not emulated");
    if (rank < 0 || rank >= ranks) return refuse(INVALID_ARGUMENT, "Invalid rank requested : %d/%d", rank, ranks);
    if (emulated_device() < 0) return refuse(UNHANDLED_CUDA_ERROR, "no context is current");
    auto comm = new Comm;
    comm->name = std::string(id.name, strnlen(id.name, sizeof id.name));
    comm->hello = {ranks, rank, emulated_device()};
    bool at_an_address = comm->name.rfind("at ", 0) == 0;
    if (at_an_address && rank == 0 && !start_hub(comm->name)) return refuse(SYSTEM_ERROR, "%s is taken", comm->name.c_str());
    std::lock_guard<std::mutex> guard(comms_lock);
    comms.insert(comm);
    *place = comm;
    return IN_PROGRESS;
}

API int ncclCommGetAsyncError(void *handle, int *status) {
    Comm *comm = comm_of(handle);
    if (!comm) return refuse(INVALID_ARGUMENT, "this is no communicator");
    // Queuing takes the driver's lock, under which the stream's work takes the communicator's.
    std::vector<std::function<int()>> pending;
    {
        std::lock_guard<std::mutex> guard(comm->lock);
        *status = progress(comm);
        if (*status != SUCCESS) {
            last_error = comm->reason;
            return SUCCESS;
        }
        pending = std::move(comm->pending);
        comm->pending.clear();
    }
    for (auto &queue : pending) {
        int error = queue();
        std::lock_guard<std::mutex> guard(comm->lock);
        if (error == CUDA_CAPTURE_UNSUPPORTED) {
            fail(comm, INVALID_USAGE, "the stream is being captured, and exchanges are no part of a recording");
        } else if (error) {
            fail(comm, UNHANDLED_CUDA_ERROR, "Cuda failure " + std::to_string(error));
        }
    }
    *status = comm->failed;
    last_error = comm->reason;
    return SUCCESS;
}

API int ncclCommCount(void *handle, int *count) {
    Comm *comm = comm_of(handle);
    if (!comm || !comm->connected) return refuse(INVALID_ARGUMENT, "this is no communicator that is connected");
    *count = comm->hello.ranks;
    return SUCCESS;
}

API int ncclCommUserRank(void *handle, int *rank) {
    Comm *comm = comm_of(handle);
    if (!comm || !comm->connected) return refuse(INVALID_ARGUMENT, "this is no communicator that is connected");
    *rank = comm->hello.rank;
    return SUCCESS;
}

API int ncclGroupStart() {
    depth++;
    return SUCCESS;
}

API int ncclGroupEnd() {
    if (depth == 0) return refuse(INVALID_USAGE, "a group ends that was not started");
    if (--depth > 0) return SUCCESS;
    auto all = std::move(calls);
    calls.clear();
    if (all.empty()) return SUCCESS;
    Comm *comm = all[0].comm;
    void *stream = all[0].stream;
    for (auto &call : all) {
        if (call.comm != comm || call.stream != stream) emulated_violation("a group of several communicators or streams is not emulated");
    }
    std::lock_guard<std::mutex> guard(comm->lock);
    if (comm->failed != SUCCESS) return last_error = comm->reason, comm->failed;
    if (!comm->pending.empty()) emulated_violation("NCCL: a group begins before the one before it was asked after");
    comm->pending.push_back([=] { return queue_group(comm, stream, all); });
    return IN_PROGRESS;
}

API int ncclSend(void *from, size_t count, int type, int peer, void *comm, void *stream) {
    return add(true, from, count, type, peer, comm, stream);
}
API int ncclRecv(void *to, size_t count, int type, int peer, void *comm, void *stream) {
    return add(false, to, count, type, peer, comm, stream);
}

API int ncclCommFinalize(void *handle) {
    Comm *comm = comm_of(handle);
    if (!comm || !comm->connected) return refuse(INVALID_ARGUMENT, "this is no communicator that is connected");
    std::lock_guard<std::mutex> guard(comm->lock);
    if (comm->taken != comm->given || !comm->pending.empty()) emulated_violation("NCCL: a communicator is finalized before its work is done");
    comm->finalizing = true;
    if (!give(comm->socket, FINALIZE, "")) return refuse(REMOTE_ERROR, "the connection with the first rank was closed");
    return IN_PROGRESS;
}

static int forget(void *handle) {
    Comm *comm = comm_of(handle);
    if (!comm) return refuse(INVALID_ARGUMENT, "this is no communicator");
    {
        std::lock_guard<std::mutex> guard(comms_lock);
        comms.erase(comm);
    }
    std::lock_guard<std::mutex> guard(comm->lock);
    if (comm->socket >= 0) close(comm->socket);
    comm->socket = -1;  // what is queued still asks
    return SUCCESS;
}

API int ncclCommDestroy(void *handle) {
    Comm *comm = comm_of(handle);
    if (comm && !comm->ended) emulated_violation("NCCL: a communicator is destroyed that was not finalized");
    return forget(handle);
}

API int ncclCommAbort(void *handle) {
    return forget(handle);
}

API const char *ncclGetErrorString(int status) {
    switch (status) {
        case SUCCESS: return "no error";
        case UNHANDLED_CUDA_ERROR: return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
        case SYSTEM_ERROR: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
        case INVALID_ARGUMENT: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
        case INVALID_USAGE: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
        case REMOTE_ERROR: return "remote process exited or there was a network error";
        case IN_PROGRESS: return "NCCL operation in progress";
        default: return "unknown result code";
    }
}

API const char *ncclGetLastError(void *) {
    return last_error.c_str();
}
