/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "attest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "job.h"
#include "textfile.h"

#define DEVICE "/dev/sev-guest"

/* SEV-SNP ABI, MSG_REPORT_RSP: status, size, reserved, report. */
enum { RESPONSE_REPORT = 32, REPORT_MAX = 4096, AUXBLOB_MAX = 24576 };

/* include/uapi/linux/sev-guest.h, whose last member's name has changed over time. */
struct report_request {
    uint8_t user_data[REPORT_DATA_BYTES];
    uint32_t vmpl;
    uint8_t reserved[28];
};

struct report_response {
    uint8_t data[4000];
};

struct guest_request {
    /* cppcheck-suppress unusedStructMember; the kernel reads it */
    uint8_t message_version;
    /* cppcheck-suppress unusedStructMember; the kernel reads it */
    uint64_t request;
    /* cppcheck-suppress unusedStructMember; the kernel reads it */
    uint64_t response;
    uint64_t firmware_error;
};

#define GET_REPORT _IOWR('S', 0x0, struct guest_request)

struct evidence {
    char provider[64];
    uint8_t report[REPORT_MAX];
    size_t report_bytes;
    uint8_t auxblob[AUXBLOB_MAX]; /* the certificates that the host gave to the firmware */
    size_t auxblob_bytes;
};

static bool fail(struct failure *failure, const char *what)
{
    failure_set(failure, errno, "cannot %s: %s", what, strerror(errno));
    return false;
}

/* The attribute file whole. False with errno set; EFBIG when it does not fit. */
static bool read_blob(int folder, const char *name, uint8_t *bytes, size_t size, size_t *length)
{
    ssize_t count = 1;

    const int fd = openat(folder, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    *length = 0;
    while (count > 0 && *length < size) {
        count = read(fd, bytes + *length, size - *length);
        if (count > 0)
            *length += (size_t)count;
        if (count < 0 && errno == EINTR)
            count = 1;
    }
    const int error = count > 0 ? EFBIG : errno;
    close(fd);
    errno = error;
    return count == 0;
}

static bool write_blob(int folder, const char *name, const uint8_t *bytes, size_t length)
{
    const int fd = openat(folder, name, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    const bool is_written = write(fd, bytes, length) == (ssize_t)length;
    const int error = errno;
    close(fd);
    errno = error;
    return is_written;
}

/* Documentation/ABI/testing/configfs-tsm: a folder is a request. */
static bool ask_tsm(int folder, const uint8_t *data, struct evidence *evidence,
                    struct failure *failure)
{
    if (!textfile_read(folder, "provider", evidence->provider, sizeof evidence->provider))
        return fail(failure, "read the provider of configfs-tsm");
    if (!write_blob(folder, "inblob", data, REPORT_DATA_BYTES))
        return fail(failure, "write the report data to configfs-tsm");
    if (!read_blob(folder, "outblob", evidence->report, sizeof evidence->report,
                   &evidence->report_bytes))
        return fail(failure, "read the report from configfs-tsm");
    /* Before Linux 6.10 there is none, and afterwards not with every provider. */
    if (!read_blob(folder, "auxblob", evidence->auxblob, sizeof evidence->auxblob,
                   &evidence->auxblob_bytes)) {
        if (errno != ENOENT && errno != ENXIO && errno != EOPNOTSUPP)
            return fail(failure, "read the certificates from configfs-tsm");
        evidence->auxblob_bytes = 0;
    }
    return true;
}

static bool use_tsm(int configfs, const uint8_t *data, struct evidence *evidence,
                    struct failure *failure)
{
    char path[64];

    snprintf(path, sizeof path, "tsm/report/sevkit-%d", getpid());
    if (mkdirat(configfs, path, 0700) != 0)
        return fail(failure, "make a request in configfs-tsm");
    const int folder = openat(configfs, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    const bool is_good = folder >= 0 ? ask_tsm(folder, data, evidence, failure)
                                     : fail(failure, "open the request in configfs-tsm");
    unlinkat(configfs, path, AT_REMOVEDIR);
    return is_good;
}

/* Documentation/virt/coco/sev-guest.rst. */
static bool use_device(const uint8_t *data, struct evidence *evidence, struct failure *failure)
{
    struct report_request request = {.vmpl = 0};
    struct report_response response = {.data = {0}};
    struct guest_request call = {
        .message_version = 1,
        .request = (size_t)&request,
        .response = (size_t)&response,
    };

    memcpy(request.user_data, data, sizeof request.user_data);
    const int fd = open(DEVICE, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return fail(failure, "open " DEVICE);
    if (ioctl(fd, GET_REPORT, &call) != 0) {
        failure_set(failure, errno, "the firmware gave no report (its error: %#llx): %s",
                    (unsigned long long)call.firmware_error, strerror(errno));
        close(fd);
        return false;
    }
    close(fd);
    const uint32_t size = (uint32_t)response.data[4] | (uint32_t)response.data[5] << 8 |
                          (uint32_t)response.data[6] << 16 | (uint32_t)response.data[7] << 24;
    if (size == 0 || size > sizeof response.data - RESPONSE_REPORT) {
        failure_set(failure, EPROTO, "the firmware gave a report of %u bytes", size);
        return false;
    }
    snprintf(evidence->provider, sizeof evidence->provider, "sev_guest");
    memcpy(evidence->report, response.data + RESPONSE_REPORT, size);
    evidence->report_bytes = size;
    return true;
}

static void put_hex(struct json_writer *writer, const uint8_t *bytes, size_t length)
{
    static const char digits[] = "0123456789abcdef";
    static char text[2 * AUXBLOB_MAX + 1];

    for (size_t i = 0; i < length; i++) {
        text[2 * i] = digits[bytes[i] >> 4];
        text[2 * i + 1] = digits[bytes[i] & 15];
    }
    text[2 * length] = '\0';
    json_put_string(writer, text);
}

static void say(int outcome_fd, const struct evidence *evidence)
{
    static char text[OUTCOME_TEXT_MAX];
    const struct outcome outcome = {.pid = 0};
    struct json_writer writer = {.text = text, .size = sizeof text};

    json_begin(&writer, '{');
    json_key(&writer, "provider");
    json_put_string(&writer, evidence->provider);
    json_key(&writer, "report");
    put_hex(&writer, evidence->report, evidence->report_bytes);
    json_key(&writer, "auxblob");
    if (evidence->auxblob_bytes > 0)
        put_hex(&writer, evidence->auxblob, evidence->auxblob_bytes);
    else
        json_put_null(&writer);
    json_end(&writer, '}');
    job_say(outcome_fd, &outcome, -1, text, writer.length);
}

/* What there is nothing to try without. */
static bool can_attest(const struct report_facts *facts, struct failure *failure)
{
    const char *mode = report_active_mode(facts);

    if (!mode)
        failure_set(failure, ENODEV,
                    "this guest cannot attest: the kernel names no active memory encryption");
    else if (strcmp(mode, "sev-snp") != 0)
        failure_set(failure, ENODEV,
                    "this guest cannot attest: it needs sev-snp, and this is %s", mode);
    return mode && strcmp(mode, "sev-snp") == 0;
}

void attest_report(void *context, int outcome_fd)
{
    static struct evidence evidence;
    const struct attest *attest = context;
    struct failure failure = {.error = 0};
    bool is_good = false;

    if (can_attest(attest->facts, &failure)) {
        const int configfs = report_open_filesystem("configfs", false);
        if (configfs >= 0 && faccessat(configfs, "tsm/report", F_OK, 0) == 0)
            is_good = use_tsm(configfs, attest->request->data, &evidence, &failure);
        else if (access(DEVICE, F_OK) == 0)
            is_good = use_device(attest->request->data, &evidence, &failure);
        else
            failure_set(&failure, ENODEV,
                        "this guest cannot attest: its kernel has neither configfs-tsm nor %s",
                        DEVICE);
    }
    if (is_good)
        say(outcome_fd, &evidence);
    else
        job_say_failure(outcome_fd, &failure);
}
