/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "expect.h"

static struct channel channel;
static struct events events;

static int open_pair(void)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0 || !events_open(&events) ||
        fcntl(ends[0], F_SETFL, O_NONBLOCK) != 0 || !channel_open(&channel, &events, ends[0]))
        abort();
    events_wait(&events, 0);
    return ends[1];
}

static void close_pair(int host)
{
    source_close(&channel.source);
    close(events.epoll_fd);
    close(host);
}

static void send_bytes(int host, const void *bytes, size_t length)
{
    if (write(host, bytes, length) != (ssize_t)length)
        abort();
    events_wait(&events, 0);
    while (channel_fill(&channel))
        ;
}

static void a_frame_may_arrive_byte_by_byte(void)
{
    static const unsigned char bytes[] = {3, 0, 0, 0, 1, 0, 0x34, 0x12, 'a', 'b', 'c'};
    const int host = open_pair();
    struct frame frame;
    struct failure failure;

    for (size_t i = 0; i < sizeof bytes; i++) {
        EXPECT(channel_frame(&channel, &frame, &failure) == FRAME_NONE, "not yet");
        send_bytes(host, bytes + i, 1);
    }
    EXPECT(channel_frame(&channel, &frame, &failure) == FRAME_READY, "complete");
    EXPECT(frame.type == FRAME_STDIN && frame.process == 0x1234 && frame.length == 3 &&
               memcmp(frame.payload, "abc", 3) == 0,
           "content");
    channel_consume(&channel, &frame);
    EXPECT(channel_frame(&channel, &frame, &failure) == FRAME_NONE, "consumed");
    close_pair(host);
}

static void many_frames_pass_through_a_full_buffer(void)
{
    enum { LENGTH = 3000, FRAMES = 100 };
    static unsigned char bytes[FRAME_HEADER + LENGTH] = {LENGTH & 0xFF, LENGTH >> 8, 0, 0, 1};
    const int host = open_pair();
    struct frame frame;
    struct failure failure;
    int sent = 0;
    int taken = 0;

    while (taken < FRAMES) {
        while (sent < FRAMES && sent < taken + 25) {
            memset(bytes + FRAME_HEADER, sent++, LENGTH);
            send_bytes(host, bytes, sizeof bytes);
        }
        while (channel_fill(&channel))
            ;
        if (channel_frame(&channel, &frame, &failure) != FRAME_READY)
            break;
        EXPECT((unsigned char)frame.payload[0] == taken &&
                   (unsigned char)frame.payload[LENGTH - 1] == taken,
               "in order and whole");
        channel_consume(&channel, &frame);
        taken++;
    }
    EXPECT(taken == FRAMES, "all of them");
    close_pair(host);
}

static void malformed_headers_are_refused(void)
{
    static const struct {
        unsigned char header[FRAME_HEADER];
        enum frame_state state;
        const char *name;
    } cases[] = {
        {{0, 0, 0, 0, 1, 0, 1, 0}, FRAME_READY, "an empty frame"},
        {{0, 0, 1, 0, 1, 0, 1, 0}, FRAME_NONE, "the longest frame, its payload to come"},
        {{1, 0, 1, 0, 1, 0, 1, 0}, FRAME_MALFORMED, "one byte longer"},
        {{0, 0, 0, 0x80, 1, 0, 1, 0}, FRAME_MALFORMED, "2 GiB"},
        {{0, 0, 0, 0, 2, 0, 1, 0}, FRAME_MALFORMED, "stdout from the host"},
        {{0, 0, 0, 0, 200, 0, 1, 0}, FRAME_MALFORMED, "an unknown type"},
        {{0, 0, 0, 0, 1, 1, 1, 0}, FRAME_MALFORMED, "a reserved byte in use"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int host = open_pair();
        struct frame frame;
        struct failure failure;
        send_bytes(host, cases[i].header, FRAME_HEADER);
        EXPECT(channel_frame(&channel, &frame, &failure) == cases[i].state, cases[i].name);
        close_pair(host);
    }
}

static void output_waits_for_a_slow_host_and_stays_whole(void)
{
    enum { FRAMES = 500 };
    static unsigned char got[FRAME_HEADER + FRAME_PAYLOAD_MAX];
    const int host = open_pair();
    size_t filled = 0;
    int queued = 0;
    int read_back = 0;
    int refusals = 0;

    fcntl(host, F_SETFL, O_NONBLOCK);
    while (read_back < FRAMES) {
        const size_t length = (size_t)(queued * 977 % 40000);
        if (queued < FRAMES && channel_room(&channel) >= length) {
            memset(channel_reserve(&channel), queued, length);
            channel_commit(&channel, FRAME_STDERR, (uint16_t)queued++, length);
            continue;
        }
        refusals += queued < FRAMES;
        events_wait(&events, 0);
        while (channel_flush(&channel))
            ;
        ssize_t count = read(host, got + filled, sizeof got - filled < 5000 ? sizeof got - filled
                                                                            : 5000);
        if (count > 0)
            filled += (size_t)count;
        size_t size;
        while (filled >= FRAME_HEADER &&
               filled >= (size = FRAME_HEADER + (size_t)(got[0] | got[1] << 8 | got[2] << 16))) {
            EXPECT(size == FRAME_HEADER + (size_t)(read_back * 977 % 40000), "length");
            EXPECT(got[4] == FRAME_STDERR && (got[6] | got[7] << 8) == read_back, "header");
            EXPECT(size == FRAME_HEADER || got[size - 1] == (unsigned char)read_back, "payload");
            memmove(got, got + size, filled - size);
            filled -= size;
            read_back++;
        }
    }
    EXPECT(refusals > 0, "the queue is bounded");
    EXPECT(channel_is_flushed(&channel), "all is out");
    close_pair(host);
}

static void a_host_that_leaves_is_noticed(void)
{
    const int host = open_pair();

    channel_fill(&channel);
    EXPECT(channel.connected && !channel.closed, "there");
    shutdown(host, SHUT_RDWR);
    events_wait(&events, 0);
    channel_fill(&channel);
    EXPECT(channel.closed, "gone");
    close_pair(host);
}

int main(void)
{
    a_frame_may_arrive_byte_by_byte();
    many_frames_pass_through_a_full_buffer();
    malformed_headers_are_refused();
    output_waits_for_a_slow_host_and_stays_whole();
    a_host_that_leaves_is_noticed();
    return expect_failures != 0;
}
