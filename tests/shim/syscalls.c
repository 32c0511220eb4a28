/*
 * System calls that misbehave on demand: a library for LD_PRELOAD.
 *
 * It stands between a process and its socket calls. Until told otherwise it passes everything on. Then, for
 * stream sockets and listeners,
 *
 *   shim_fail(call, code, times)   lets the next `times` calls fail with the error number `code`
 *   shim_random(seed, percent)     lets that share of calls be interrupted (EINTR), find nothing (EAGAIN) or
 *                                  move fewer bytes than asked, in a sequence that the seed determines
 *   shim_count(what)               how many calls it has (0) seen, (1) failed, (2) cut short
 *   shim_received_into()           where the last receive was asked to put what has come
 *
 * Calls are numbered as in `enum call`. All of it is meant for one thread.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum call { ACCEPT, RECV, SEND, SENDMSG, SENDFILE, CALLS };

static struct {
    int code;
    int times;
} failing[CALLS];
static uint64_t state;
static unsigned rate;
static unsigned long counts[3];
static void *received_into;

void shim_fail(int call, int code, int times) {
    failing[call].code = code;
    failing[call].times = times;
}

void shim_random(uint64_t seed, unsigned percent) {
    state = seed * 0x9e3779b97f4a7c15u + 1;
    rate = percent;
}

unsigned long shim_count(int what) { return counts[what]; }

void *shim_received_into(void) { return received_into; }

/* xorshift64* */
static uint64_t draw(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1du >> 16;
}

/* What happens to this call: 0 it is passed on, 1 it is to be cut short, -1 it has failed and errno is set. */
static int fate(enum call call) {
    counts[0]++;
    int code = 0;
    if (failing[call].times > 0) {
        failing[call].times--;
        code = failing[call].code;
    } else if (rate && draw() % 100 < rate) {
        switch (draw() % 3) {
        case 0: code = EINTR; break;
        case 1: code = EAGAIN; break;
        default: return call != ACCEPT;
        }
    }
    if (!code)
        return 0;
    counts[1]++;
    errno = code;
    return -1;
}

static size_t shorter(size_t length) {
    if (length < 2)
        return length;
    counts[2]++;
    return 1 + draw() % (length - 1);
}

static int is_stream(int fd) {
    int kind = 0, saved = errno;
    socklen_t size = sizeof kind;
    int known = getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &size);
    errno = saved;
    return known == 0 && kind == SOCK_STREAM;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int accept4(int fd, struct sockaddr *restrict address, socklen_t *restrict size, int flags) {
    if (fate(ACCEPT) < 0)
        return -1;
    return NEXT(accept4)(fd, address, size, flags);
}

ssize_t recv(int fd, void *buffer, size_t length, int flags) {
    if (is_stream(fd)) {
        received_into = buffer;
        int what = fate(RECV);
        if (what < 0)
            return -1;
        if (what > 0)
            length = shorter(length);
    }
    return NEXT(recv)(fd, buffer, length, flags);
}

ssize_t send(int fd, const void *buffer, size_t length, int flags) {
    if (is_stream(fd)) {
        int what = fate(SEND);
        if (what < 0)
            return -1;
        if (what > 0)
            length = shorter(length);
    }
    return NEXT(send)(fd, buffer, length, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (is_stream(fd)) {
        int what = fate(SENDMSG);
        if (what < 0)
            return -1;
        if (what > 0 && message->msg_iovlen > 0) {
            /* As much as a part of the first pieces: the cut goes through one of them. */
            size_t pieces = 1 + draw() % message->msg_iovlen;
            struct iovec cut[pieces];
            memcpy(cut, message->msg_iov, sizeof cut);
            cut[pieces - 1].iov_len = shorter(cut[pieces - 1].iov_len);
            struct msghdr less = *message;
            less.msg_iov = cut;
            less.msg_iovlen = pieces;
            return NEXT(sendmsg)(fd, &less, flags);
        }
    }
    return NEXT(sendmsg)(fd, message, flags);
}

ssize_t sendfile(int fd, int file, off_t *offset, size_t length) {
    int what = fate(SENDFILE);
    if (what < 0)
        return -1;
    return NEXT(sendfile)(fd, file, offset, what > 0 ? shorter(length) : length);
}
