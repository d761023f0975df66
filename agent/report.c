/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "report.h"

#include <cpuid.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "listener.h"
#include "textfile.h"

#define VIRTIO_DEVICES "/sys/bus/virtio/devices"

/* include/linux/swiotlb.h: IO_TLB_SIZE */
enum { SWIOTLB_SLOT_BYTES = 2048 };

/* include/uapi/linux/virtio_config.h */
enum { VIRTIO_F_ACCESS_PLATFORM = 33 };

static void put_known(struct json_writer *writer, const char *key, bool known,
                      const int64_t *value)
{
    json_key(writer, key);
    if (known)
        json_put_integer(writer, *value);
    else
        json_put_null(writer);
}

/* Finds the kernel's "Memory Encryption Features active: …". A record of /dev/kmsg is
 * "<facility × 8 + level>,<sequence>,…;<text>\n"; facility 0 is the kernel's own, which nobody
 * else can write (Documentation/ABI/testing/dev-kmsg). */
static void find_encryption(char *line, size_t size)
{
    static const char wanted[] = "Memory Encryption Features active:";
    static char record[8192];

    line[0] = '\0';
    const int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return;
    for (;;) {
        const ssize_t length = read(fd, record, sizeof record - 1);
        if (length < 0 && (errno == EPIPE || errno == EINTR))
            continue; /* EPIPE: the record was overwritten */
        if (length <= 0)
            break;
        record[length] = '\0';
        const char *text = strchr(record, ';');
        if (!text || strtol(record, NULL, 10) >= 8 || !strstr(text, wanted))
            continue;
        snprintf(line, size, "%.*s", (int)strcspn(text + 1, "\n"), text + 1);
        break;
    }
    close(fd);
}

void report_gather(struct report_facts *facts, bool is_sealed, bool is_debug)
{
    find_encryption(facts->encryption, sizeof facts->encryption);
    facts->is_sealed = is_sealed;
    facts->is_debug = is_debug;
}

bool report_is_debug_image(void)
{
    char release[512];

    return textfile_read(AT_FDCWD, "/etc/sevkit-release", release, sizeof release) &&
           textfile_has_word(release, "VARIANT=debug");
}

/* AMD64 Architecture Programmer's Manual, volume 3, Fn8000_001F_EAX. */
static void write_cpu_features(struct json_writer *writer)
{
    static const struct {
        unsigned int bit;
        const char *name;
    } features[] = {{0, "sme"}, {1, "sev"}, {3, "sev-es"}, {4, "sev-snp"}};
    unsigned int eax = 0;
    unsigned int ebx;
    unsigned int ecx;
    unsigned int edx;

    if (!__get_cpuid(0x8000001f, &eax, &ebx, &ecx, &edx))
        eax = 0;
    json_begin(writer, '[');
    for (size_t i = 0; i < sizeof features / sizeof features[0]; i++) {
        if (eax >> features[i].bit & 1)
            json_put_string(writer, features[i].name);
    }
    json_end(writer, ']');
}

/* The strongest mode in a line like "Memory Encryption Features active: AMD SEV SEV-ES". */
const char *report_active_mode(const struct report_facts *facts)
{
    static const struct {
        const char *word;
        const char *mode;
    } modes[] = {{" SEV-SNP", "sev-snp"}, {" SEV-ES", "sev-es"}, {" SEV", "sev"}};

    if (!strstr(facts->encryption, " AMD"))
        return NULL;
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        if (strstr(facts->encryption, modes[i].word))
            return modes[i].mode;
    }
    return NULL;
}

static void write_sev(struct json_writer *writer, const struct report_facts *facts)
{
    const char *active = report_active_mode(facts);

    json_begin(writer, '{');
    json_key(writer, "cpu");
    write_cpu_features(writer);
    json_key(writer, "kernel");
    if (facts->encryption[0])
        json_put_string(writer, facts->encryption);
    else
        json_put_null(writer);
    json_key(writer, "active");
    if (active)
        json_put_string(writer, active);
    else
        json_put_null(writer);
    json_key(writer, "guest_device");
    json_put_boolean(writer, access("/dev/sev-guest", F_OK) == 0);
    json_end(writer, '}');
}

/* Of no mount namespace, so nobody but the agent ever sees it. */
int report_open_filesystem(const char *type, bool is_read_only)
{
    const unsigned int attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC |
                                    (is_read_only ? MOUNT_ATTR_RDONLY : 0U);
    const int context = fsopen(type, FSOPEN_CLOEXEC);
    if (context < 0)
        return -1;
    int fd = -1;
    if (fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        fd = fsmount(context, FSMOUNT_CLOEXEC, attributes);
    close(context);
    return fd;
}

static void write_swiotlb(struct json_writer *writer)
{
    int64_t total;
    int64_t used;
    int64_t hiwater;

    const int debugfs = report_open_filesystem("debugfs", true);
    if (debugfs < 0 || !textfile_read_integer(debugfs, "swiotlb/io_tlb_nslabs", &total)) {
        json_put_null(writer);
    } else {
        json_begin(writer, '{');
        put_known(writer, "total_slots", true, &total);
        put_known(writer, "used_slots",
                  textfile_read_integer(debugfs, "swiotlb/io_tlb_used", &used), &used);
        put_known(writer, "hiwater_slots",
                  textfile_read_integer(debugfs, "swiotlb/io_tlb_used_hiwater", &hiwater),
                  &hiwater);
        json_key(writer, "slot_bytes");
        json_put_integer(writer, SWIOTLB_SLOT_BYTES);
        json_end(writer, '}');
    }
    if (debugfs >= 0)
        close(debugfs);
}

static int is_device(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static void write_virtio_device(struct json_writer *writer, int folder, const char *name)
{
    char path[300];
    char features[80];
    int64_t id;

    json_begin(writer, '{');
    json_key(writer, "device");
    json_put_string(writer, name);
    snprintf(path, sizeof path, "%s/device", name);
    put_known(writer, "id", textfile_read_integer(folder, path, &id), &id);
    json_key(writer, "access_platform");
    /* One digit per bit, bit 0 first; all 0 while no driver has negotiated them. */
    snprintf(path, sizeof path, "%s/driver", name);
    const bool has_driver = faccessat(folder, path, F_OK, 0) == 0;
    snprintf(path, sizeof path, "%s/features", name);
    if (has_driver && textfile_read(folder, path, features, sizeof features) &&
        strlen(features) > VIRTIO_F_ACCESS_PLATFORM)
        json_put_boolean(writer, features[VIRTIO_F_ACCESS_PLATFORM] == '1');
    else
        json_put_null(writer);
    json_end(writer, '}');
}

static void write_virtio(struct json_writer *writer)
{
    struct dirent **entries;

    const int folder = open(VIRTIO_DEVICES, O_PATH | O_DIRECTORY | O_CLOEXEC);
    const int count = folder < 0 ? -1 : scandir(VIRTIO_DEVICES, &entries, is_device, versionsort);
    if (count < 0) {
        json_put_null(writer);
    } else {
        json_begin(writer, '[');
        for (int i = 0; i < count; i++) {
            write_virtio_device(writer, folder, entries[i]->d_name);
            free(entries[i]);
        }
        free(entries);
        json_end(writer, ']');
    }
    if (folder >= 0)
        close(folder);
}

static void write_memory(struct json_writer *writer)
{
    char text[4096];
    int64_t total;
    int64_t available;
    int64_t unused[4];
    static const char *const not_in_use[4] = {"MemFree", "Buffers", "Cached", "SReclaimable"};

    if (!textfile_read(AT_FDCWD, "/proc/meminfo", text, sizeof text)) {
        json_put_null(writer);
        return;
    }
    const bool has_total = textfile_field(text, "MemTotal", &total);
    bool has_used = has_total;
    int64_t used = has_total ? total : 0;
    for (size_t i = 0; i < 4; i++) {
        has_used = has_used && textfile_field(text, not_in_use[i], &unused[i]);
        used -= has_used ? unused[i] : 0;
    }
    json_begin(writer, '{');
    put_known(writer, "total_kib", has_total, &total);
    put_known(writer, "available_kib", textfile_field(text, "MemAvailable", &available),
              &available);
    put_known(writer, "used_kib", has_used, &used);
    json_end(writer, '}');
}

/* The type of what is mounted on / last: the third field of the last line whose second is "/". */
static void write_root_fstype(struct json_writer *writer)
{
    char type[64] = "";
    char line[512];

    FILE *mounts = fopen("/proc/self/mounts", "re");
    while (mounts && fgets(line, sizeof line, mounts)) {
        char target[256];
        char found[sizeof type];
        if (sscanf(line, "%*s %255s %63s", target, found) == 2 && strcmp(target, "/") == 0)
            memcpy(type, found, sizeof type);
    }
    if (mounts)
        fclose(mounts);
    if (type[0])
        json_put_string(writer, type);
    else
        json_put_null(writer);
}

void report_write(struct json_writer *writer, const struct report_facts *facts)
{
    struct utsname system;
    struct timespec since_boot;
    char status[4096];
    int64_t rss;
    uint32_t cid = 0;

    clock_gettime(CLOCK_BOOTTIME, &since_boot);
    json_begin(writer, '{');
    json_key(writer, "kernel");
    json_put_string(writer, uname(&system) == 0 ? system.release : "");
    json_key(writer, "uptime_ms");
    json_put_integer(writer, (int64_t)since_boot.tv_sec * 1000 + since_boot.tv_nsec / 1000000);
    json_key(writer, "sev");
    write_sev(writer, facts);
    json_key(writer, "swiotlb");
    write_swiotlb(writer);
    json_key(writer, "virtio");
    write_virtio(writer);
    json_key(writer, "memory");
    write_memory(writer);
    json_key(writer, "root_fstype");
    write_root_fstype(writer);
    json_key(writer, "pid");
    json_put_integer(writer, getpid());
    put_known(writer, "agent_rss_kib",
              textfile_read(AT_FDCWD, "/proc/self/status", status, sizeof status) &&
                  textfile_field(status, "VmRSS", &rss),
              &rss);
    json_key(writer, "vsock_cid");
    if (listener_guest_cid(&cid))
        json_put_integer(writer, cid);
    else
        json_put_null(writer);
    json_key(writer, "sealed");
    json_put_boolean(writer, facts->is_sealed);
    json_key(writer, "debug");
    json_put_boolean(writer, facts->is_debug);
    json_end(writer, '}');
}
