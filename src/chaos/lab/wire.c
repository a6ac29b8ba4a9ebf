/* Hosts as network namespaces, and the wire between them: rate, delay, jitter and loss per direction of each link.
 *
 *     chaos-wire HOSTS MTU SEED
 *
 * Host i (from 0 on) has the address 10.77.0.(i+1) on the device lab0. The first line of output is a JSON list with a
 * process id per host: /proc/PID/ns/net is its namespace. Commands come on standard input; its end ends everything. Rates are bits per
 * second, 0 meaning no limit; times are microseconds.
 *
 *     link FROM TO UP RATE DELAY JITTER LOSS_PPM QUEUE      one direction
 *     host HOST UP_RATE DOWN_RATE QUEUE                     what all links of a host share
 *     stats                                                 prints one line of JSON
 *
 * A packet passes its sender's uplink, the link, the delay, and its receiver's downlink. Each of the three queues is
 * first in, first out, and drops what would wait longer than QUEUE. Packets of one direction stay in order.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_HOSTS 64
#define MAX_PACKET 65536
#define BATCH 64 /* packets read from one host before the others have their turn */
#define BURST_NS 10000000 /* what a line has not carried so lately it still may: this process does not always run */
#define QUANTUM_NS 250000 /* what is due within it goes together: waking for each packet costs twice the time */

typedef struct {
    double rate;
    int64_t queue_ns, busy_until;
} Serializer;

typedef struct {
    Serializer line;
    int up;
    int64_t delay_ns, jitter_ns, last;
    uint32_t loss_ppm;
    uint64_t packets, bytes, dropped;
} Direction;

typedef struct {
    int fd;
    Serializer up, down;
} Host;

typedef struct {
    int64_t due;
    uint64_t order;
    int from, to, queued_down, length;
    unsigned char data[];
} Packet;

static Host hosts[MAX_HOSTS];
static Direction links[MAX_HOSTS][MAX_HOSTS];
static int host_count;
static int64_t worst_late;

static Packet **heap;
static size_t heap_size, heap_room;
static uint64_t heap_order;

static void fail(const char *what) {
    fprintf(stderr, "chaos-wire: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static uint64_t chance_state;

/* xorshift64*: the same losses for the same seed and the same packets. */
static double chance(void) {
    chance_state ^= chance_state >> 12;
    chance_state ^= chance_state << 25;
    chance_state ^= chance_state >> 27;
    return (double)((chance_state * 2685821657736338717ULL) >> 11) / 9007199254740992.0;
}

/* --- packets that wait for their time --------------------------------------------------------------------- */

static int before(const Packet *a, const Packet *b) {
    return a->due < b->due || (a->due == b->due && a->order < b->order);
}

static void push(Packet *packet) {
    if (heap_size == heap_room) {
        heap_room = heap_room ? heap_room * 2 : 4096;
        heap = realloc(heap, heap_room * sizeof *heap);
        if (!heap) fail("no memory");
    }
    packet->order = heap_order++;
    size_t i = heap_size++;
    while (i && before(packet, heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = packet;
}

static Packet *pop(void) {
    Packet *first = heap[0], *last = heap[--heap_size];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < heap_size) {
        if (child + 1 < heap_size && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], last)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return first;
}

/* --- the wire --------------------------------------------------------------------------------------------- */

/* When a packet that arrives at `at` has left; -1 if the queue is too long for it. */
static int64_t serialize(Serializer *line, int64_t at, int length) {
    if (line->rate <= 0) return at;
    int64_t start = line->busy_until > at - BURST_NS ? line->busy_until : at - BURST_NS;
    if (start - at > line->queue_ns) return -1;
    line->busy_until = start + (int64_t)(length * 8e9 / line->rate);
    return line->busy_until > at ? line->busy_until : at;
}

static void deliver(Packet *packet, int64_t now) {
    Direction *link = &links[packet->from][packet->to];
    if (!packet->queued_down) {
        int64_t out = serialize(&hosts[packet->to].down, packet->due, packet->length);
        if (out < 0) {
            link->dropped++;
            free(packet);
            return;
        }
        packet->queued_down = 1;
        if (out > now) {
            packet->due = out;
            push(packet);
            return;
        }
    }
    if (write(hosts[packet->to].fd, packet->data, packet->length) == packet->length) {
        link->packets++;
        link->bytes += packet->length;
    } else {
        link->dropped++; /* the receiver's device is down or its stack has no room: a packet lost, as anywhere */
    }
    free(packet);
}

static void accept_packet(int from, const unsigned char *data, int length) {
    uint32_t destination;
    if (length < 20 || data[0] >> 4 != 4) return;
    memcpy(&destination, data + 16, 4);
    int to = (int)(ntohl(destination) & 0xff) - 1;
    if (to < 0 || to >= host_count || to == from) return;
    Direction *link = &links[from][to];
    int64_t now = now_ns(), at;
    if (!link->up || (link->loss_ppm && chance() * 1e6 < link->loss_ppm) ||
        (at = serialize(&hosts[from].up, now, length)) < 0 || (at = serialize(&link->line, at, length)) < 0) {
        link->dropped++;
        return;
    }
    at += link->delay_ns;
    if (link->jitter_ns) at += (int64_t)(chance() * link->jitter_ns);
    if (at < link->last) at = link->last;
    link->last = at;
    Packet *packet = malloc(sizeof *packet + length);
    if (!packet) fail("no memory");
    packet->due = at;
    packet->from = from;
    packet->to = to;
    packet->queued_down = 0;
    packet->length = length;
    memcpy(packet->data, data, length);
    if (at <= now)
        deliver(packet, now);
    else
        push(packet);
}

static void read_host(int from) {
    static unsigned char buffer[MAX_PACKET];
    for (int n = 0; n < BATCH; n++) {
        ssize_t length = read(hosts[from].fd, buffer, sizeof buffer);
        if (length <= 0) return;
        accept_packet(from, buffer, (int)length);
    }
}

/* --- commands --------------------------------------------------------------------------------------------- */

static int is_host(int i) { return i >= 0 && i < host_count; }

static void print_stats(void) {
    const char *comma = "";
    printf("{\"late_us\": %lld, \"directions\": [", (long long)(worst_late / 1000));
    for (int i = 0; i < host_count; i++)
        for (int j = 0; j < host_count; j++) {
            const Direction *d = &links[i][j];
            if (!d->packets && !d->dropped) continue;
            printf("%s[%d, %d, %llu, %llu, %llu]", comma, i, j, (unsigned long long)d->packets,
                   (unsigned long long)d->bytes, (unsigned long long)d->dropped);
            comma = ", ";
        }
    printf("]}\n");
    fflush(stdout);
    worst_late = 0;
}

static void obey(const char *line) {
    int from, to, up;
    double rate, other;
    long long delay, jitter, queue;
    unsigned loss;
    if (!strcmp(line, "stats")) {
        print_stats();
    } else if (sscanf(line, "link %d %d %d %lf %lld %lld %u %lld", &from, &to, &up, &rate, &delay, &jitter, &loss,
                      &queue) == 8 && is_host(from) && is_host(to)) {
        Direction *d = &links[from][to];
        d->up = up;
        d->line.rate = rate;
        d->line.queue_ns = queue * 1000;
        d->delay_ns = delay * 1000;
        d->jitter_ns = jitter * 1000;
        d->loss_ppm = loss;
    } else if (sscanf(line, "host %d %lf %lf %lld", &from, &rate, &other, &queue) == 4 && is_host(from)) {
        hosts[from].up.rate = rate;
        hosts[from].down.rate = other;
        hosts[from].up.queue_ns = hosts[from].down.queue_ns = queue * 1000;
    } else {
        fprintf(stderr, "chaos-wire: not understood: %s\n", line);
        exit(2);
    }
}

/* 0 when standard input has ended. */
static int read_commands(void) {
    static char buffer[65536];
    static size_t filled;
    ssize_t length = read(0, buffer + filled, sizeof buffer - 1 - filled);
    if (length <= 0) return length < 0 && (errno == EAGAIN || errno == EINTR);
    filled += length;
    char *start = buffer, *end;
    while ((end = memchr(start, '\n', buffer + filled - start))) {
        *end = 0;
        obey(start);
        start = end + 1;
    }
    filled = buffer + filled - start;
    memmove(buffer, start, filled);
    return 1;
}

/* --- hosts ------------------------------------------------------------------------------------------------ */

static void set_up(int sock, struct ifreq *request) {
    if (ioctl(sock, SIOCGIFFLAGS, request) < 0) fail("SIOCGIFFLAGS");
    request->ifr_flags |= IFF_UP | IFF_RUNNING;
    if (ioctl(sock, SIOCSIFFLAGS, request) < 0) fail("SIOCSIFFLAGS");
}

static void configure(const char *name, const char *address, const char *mask, int mtu) {
    struct ifreq request = {0};
    struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0) fail("socket");
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (address) {
        in->sin_family = AF_INET;
        inet_pton(AF_INET, address, &in->sin_addr);
        if (ioctl(sock, SIOCSIFADDR, &request) < 0) fail("SIOCSIFADDR");
        inet_pton(AF_INET, mask, &in->sin_addr);
        if (ioctl(sock, SIOCSIFNETMASK, &request) < 0) fail("SIOCSIFNETMASK");
        request.ifr_mtu = mtu;
        if (ioctl(sock, SIOCSIFMTU, &request) < 0) fail("SIOCSIFMTU");
    }
    set_up(sock, &request);
    close(sock);
}

/* A process that keeps the namespace, which the caller is in, open for others to enter; it ends with the caller. */
static pid_t keep_namespace(pid_t parent) {
    pid_t child = fork();
    if (child < 0) fail("fork");
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(0);
        close(0);
        close(1);
        for (;;) pause();
    }
    return child;
}

static pid_t make_host(int number, int mtu) {
    char address[32];
    struct ifreq request = {0};
    if (unshare(CLONE_NEWNET) < 0) fail("a network namespace of its own");
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) fail("/dev/net/tun");
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    strncpy(request.ifr_name, "lab0", IFNAMSIZ - 1);
    if (ioctl(fd, TUNSETIFF, &request) < 0) fail("TUNSETIFF");
    snprintf(address, sizeof address, "10.77.0.%d", number + 1);
    configure("lo", NULL, NULL, 0);
    configure("lab0", address, "255.255.255.0", mtu);
    hosts[number].fd = fd;
    return keep_namespace(getpid());
}

static int64_t carry_due(void) {
    int64_t now = now_ns();
    while (heap_size && heap[0]->due <= now) {
        if (now - heap[0]->due > worst_late) worst_late = now - heap[0]->due;
        deliver(pop(), now);
    }
    return heap_size ? heap[0]->due - now_ns() : 1000000000;
}

int main(int argc, char **argv) {
    if (argc != 4 || (host_count = atoi(argv[1])) < 1 || host_count > MAX_HOSTS) {
        fprintf(stderr, "usage: chaos-wire HOSTS MTU SEED, with at most %d hosts\n", MAX_HOSTS);
        return 2;
    }
    chance_state = strtoull(argv[3], NULL, 10) * 2654435769ULL + 88172645463325252ULL;
    for (int i = 0; i < host_count; i++) printf("%s%d", i ? ", " : "[", make_host(i, atoi(argv[2])));
    puts("]");
    fflush(stdout);
    prctl(PR_SET_TIMERSLACK, 1);
    struct sched_param first = {.sched_priority = 1};
    if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &first) < 0)
        setpriority(PRIO_PROCESS, 0, -15); /* if it may not, packets are later on a busy machine: see late_us */
    fcntl(0, F_SETFL, O_NONBLOCK);
    struct pollfd polled[MAX_HOSTS + 1] = {{.fd = 0, .events = POLLIN}};
    for (int i = 0; i < host_count; i++) polled[i + 1] = (struct pollfd){.fd = hosts[i].fd, .events = POLLIN};
    for (;;) {
        int64_t wait = carry_due();
        if (wait < QUANTUM_NS) wait = QUANTUM_NS;
        struct timespec timeout = {wait / 1000000000, wait % 1000000000};
        if (ppoll(polled, host_count + 1, &timeout, NULL) < 0 && errno != EINTR) fail("ppoll");
        if (polled[0].revents && !read_commands()) return 0;
        for (int i = 0; i < host_count; i++)
            if (polled[i + 1].revents) read_host(i);
    }
}
