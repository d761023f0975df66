/* SPDX-License-Identifier: Apache-2.0 */
#include "channel.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "memory.h"

enum { TRIM_LEAST = 16384 };

bool channel_open(struct channel *channel, struct events *events, int fd)
{
    channel->connected = channel->closed = channel->stalled = false;
    channel->in_start = channel->in_end = channel->out_start = channel->out_end = 0;
    channel->in_used = channel->out_used = 0;
    return events_watch(events, &channel->source, fd);
}

/* A port is hung up until the host connects, which is worth waiting for; and again when it has
 * left, which is the end. */
static void notice_host(struct channel *channel)
{
    const uint32_t ready = channel->source.ready;
    if ((ready & EPOLLHUP) == 0 && (ready & (EPOLLIN | EPOLLOUT)) != 0)
        channel->connected = true;
    else if ((ready & (EPOLLHUP | EPOLLERR)) != 0 && channel->connected)
        channel->closed = true;
}

bool channel_fill(struct channel *channel)
{
    notice_host(channel);
    if (!channel->connected || (channel->source.ready & EPOLLIN) == 0)
        return false;
    if (channel->in_end == CHANNEL_IN_BYTES) {
        if (channel->in_start == 0)
            return false;
        channel->in_end -= channel->in_start;
        memmove(channel->in, channel->in + channel->in_start, channel->in_end);
        channel->in_start = 0;
    }
    const ssize_t count = read(channel->source.fd, channel->in + channel->in_end,
                               CHANNEL_IN_BYTES - channel->in_end);
    if (count > 0) {
        channel->in_end += (size_t)count;
        if (channel->in_used < channel->in_end)
            channel->in_used = channel->in_end;
        return true;
    }
    if (count == 0 || (errno != EAGAIN && errno != EINTR))
        channel->closed = true;
    else if (errno == EAGAIN)
        channel->source.ready &= ~(uint32_t)EPOLLIN;
    return false;
}

enum frame_state channel_frame(struct channel *channel, struct frame *frame,
                               struct failure *failure)
{
    const uint8_t *header = channel->in + channel->in_start;
    const size_t arrived = channel->in_end - channel->in_start;

    if (arrived < FRAME_HEADER)
        return FRAME_NONE;
    const uint32_t length = (uint32_t)header[0] | (uint32_t)header[1] << 8 |
                            (uint32_t)header[2] << 16 | (uint32_t)header[3] << 24;
    if (length > FRAME_PAYLOAD_MAX) {
        failure_set(failure, EMSGSIZE, "a frame of %u bytes, more than %d", length,
                    FRAME_PAYLOAD_MAX);
        return FRAME_MALFORMED;
    }
    if (header[4] != FRAME_CONTROL && header[4] != FRAME_STDIN && header[4] != FRAME_CREDIT) {
        failure_set(failure, EPROTO, "a frame of type %u, which the host may not send", header[4]);
        return FRAME_MALFORMED;
    }
    if (header[5] != 0) {
        failure_set(failure, EPROTO, "a frame whose reserved byte is %u", header[5]);
        return FRAME_MALFORMED;
    }
    if (arrived - FRAME_HEADER < length)
        return FRAME_NONE;
    frame->type = header[4];
    frame->process = (uint16_t)(header[6] | header[7] << 8);
    frame->length = length;
    frame->payload = (char *)channel->in + channel->in_start + FRAME_HEADER;
    return FRAME_READY;
}

void channel_consume(struct channel *channel, const struct frame *frame)
{
    channel->in_start += FRAME_HEADER + frame->length;
    if (channel->in_start == channel->in_end)
        channel->in_start = channel->in_end = 0;
}

size_t channel_room(const struct channel *channel)
{
    const size_t free = CHANNEL_OUT_BYTES - (channel->out_end - channel->out_start);
    if (free <= FRAME_HEADER)
        return 0;
    return free - FRAME_HEADER < FRAME_PAYLOAD_MAX ? free - FRAME_HEADER : FRAME_PAYLOAD_MAX;
}

void *channel_reserve(struct channel *channel)
{
    if (channel->out_start > 0 &&
        CHANNEL_OUT_BYTES - channel->out_end < FRAME_HEADER + channel_room(channel)) {
        channel->out_end -= channel->out_start;
        memmove(channel->out, channel->out + channel->out_start, channel->out_end);
        channel->out_start = 0;
    }
    return channel->out + channel->out_end + FRAME_HEADER;
}

void channel_commit(struct channel *channel, enum frame_type type, uint16_t process, size_t length)
{
    uint8_t *header = channel->out + channel->out_end;
    header[0] = (uint8_t)length;
    header[1] = (uint8_t)(length >> 8);
    header[2] = (uint8_t)(length >> 16);
    header[3] = (uint8_t)(length >> 24);
    header[4] = (uint8_t)type;
    header[5] = 0;
    header[6] = (uint8_t)process;
    header[7] = (uint8_t)(process >> 8);
    channel->out_end += FRAME_HEADER + length;
    if (channel->out_used < channel->out_end)
        channel->out_used = channel->out_end;
}

void channel_trim(struct channel *channel)
{
    if (channel->in_end == 0 && channel->in_used > TRIM_LEAST) {
        memory_release(channel->in, sizeof channel->in);
        channel->in_used = 0;
    }
    if (channel->out_end == 0 && channel->out_used > TRIM_LEAST) {
        memory_release(channel->out, sizeof channel->out);
        channel->out_used = 0;
    }
}

bool channel_is_flushed(const struct channel *channel)
{
    return channel->out_start == channel->out_end;
}

bool channel_flush(struct channel *channel)
{
    notice_host(channel);
    channel->stalled = false;
    if (!channel->connected || channel_is_flushed(channel) ||
        (channel->source.ready & EPOLLOUT) == 0)
        return false;
    const ssize_t count = write(channel->source.fd, channel->out + channel->out_start,
                                channel->out_end - channel->out_start);
    if (count > 0) {
        channel->out_start += (size_t)count;
        if (channel_is_flushed(channel))
            channel->out_start = channel->out_end = 0;
        return true;
    }
    /* The port's driver writes nothing, and says 0, when it cannot map a buffer (SWIOTLB full). */
    if (count == 0 || errno == ENOMEM || errno == ENOSPC)
        channel->stalled = true;
    else if (errno == EAGAIN)
        channel->source.ready &= ~(uint32_t)EPOLLOUT;
    else if (errno != EINTR)
        channel->closed = true;
    return false;
}
