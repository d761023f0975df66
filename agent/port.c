/* SPDX-License-Identifier: Apache-2.0 */
#include "port.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "textfile.h"

#define PORTS "/sys/class/virtio-ports"

#define DEVICES "/sys/bus/virtio/devices"

/* include/uapi/linux/virtio_ids.h */
enum { VIRTIO_ID_CONSOLE = 3 };

enum { STEP_MS = 5 };

/* The device of the port called PORT_NAME, "/dev/vport0p1" say. `*seen` counts the other ports. */
static bool find_device(char *device, size_t size, unsigned int *seen)
{
    DIR *ports = opendir(PORTS);
    bool found = false;

    *seen = 0;
    if (!ports)
        return false;
    for (const struct dirent *port = readdir(ports); port && !found; port = readdir(ports)) {
        char path[300];
        char name[64];
        if (port->d_name[0] == '.')
            continue;
        ++*seen;
        snprintf(path, sizeof path, "%s/name", port->d_name);
        found = textfile_read(dirfd(ports), path, name, sizeof name) &&
                strcmp(name, PORT_NAME) == 0;
        if (found)
            snprintf(device, size, "/dev/%s", port->d_name);
    }
    closedir(ports);
    return found;
}

/* A guest that has vsock needs no port: it is waited for when there is a device for it. */
static bool has_serial_device(void)
{
    DIR *devices = opendir(DEVICES);
    bool found = false;

    if (!devices)
        return false;
    for (const struct dirent *device = readdir(devices); device && !found;
         device = readdir(devices)) {
        char path[300];
        int64_t id;
        snprintf(path, sizeof path, "%s/device", device->d_name);
        found = device->d_name[0] != '.' &&
                textfile_read_integer(dirfd(devices), path, &id) && id == VIRTIO_ID_CONSOLE;
    }
    closedir(devices);
    return found;
}

int port_open(bool is_needed, int timeout_ms, struct failure *failure)
{
    static const struct timespec step = {0, STEP_MS * 1000000L};
    char device[300];
    unsigned int seen;

    /* The host tells the port's name some time after the device is there. */
    while (!find_device(device, sizeof device, &seen)) {
        if (timeout_ms <= 0 || (!is_needed && !has_serial_device())) {
            failure_set(failure, ENODEV,
                        "no vsock device, and no virtio-serial port called " PORT_NAME
                        " (%s, %u other ports)",
                        access("/sys/bus/virtio/drivers/virtio_console", F_OK) == 0
                            ? "the kernel has virtio-serial"
                            : "the kernel has no virtio-serial driver",
                        seen);
            return -1;
        }
        nanosleep(&step, NULL);
        timeout_ms -= STEP_MS;
    }
    const int fd = open(device, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        failure_set(failure, errno, "cannot open %.100s: %s", device, strerror(errno));
    return fd;
}
