/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "bundle.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "rootfs.h"
#include "textfile.h"

#define CONFIG "config.json"

static struct json_pool pool;
static char config_text[BUNDLE_CONFIG_MAX];
static char written[2 * BUNDLE_CONFIG_MAX];

static bool refuse(struct failure *failure, const char *why)
{
    failure_set(failure, EINVAL, "config: %s", why);
    return false;
}

static bool load(const char *from, const char *text, struct failure *failure)
{
    if (text) {
        if (strlen(text) >= sizeof config_text)
            return refuse(failure, "is too long");
        memcpy(config_text, text, strlen(text) + 1);
        return true;
    }
    if (!textfile_read(AT_FDCWD, from, config_text, sizeof config_text)) {
        failure_set(failure, errno, "cannot read the configuration %s: %s", from,
                    strerror(errno));
        return false;
    }
    return strlen(config_text) + 1 < sizeof config_text || refuse(failure, "is too long");
}

static const struct json *member(const struct json *object, const char *key)
{
    if (!object || object->type != JSON_OBJECT)
        return NULL;
    for (const struct json *one = object->first; one; one = one->next) {
        if (json_key_is(one, key))
            return one;
    }
    return NULL;
}

static bool is_true(const struct json *value)
{
    return value && value->type == JSON_BOOLEAN && value->boolean;
}

static const struct json *parse(struct bundle *bundle, struct failure *failure)
{
    const char *problem = NULL;

    const struct json *config =
        json_read(&pool, config_text, strlen(config_text), &problem);
    if (!config) {
        refuse(failure, problem);
        return NULL;
    }
    const struct json *path = member(member(config, "root"), "path");
    const char *root = path ? json_c_string(path) : NULL;
    if (!root || strcmp(root, ROOTFS_FOLDER) != 0) {
        refuse(failure, "root.path must be '" ROOTFS_FOLDER "'");
        return NULL;
    }
    const struct json *process = member(config, "process");
    bundle->has_terminal = is_true(member(process, "terminal"));
    bundle->forbids_new_privileges = is_true(member(process, "noNewPrivileges"));
    return config;
}

/* False for text or a key with a NUL inside, which could be two things to two readers. */
static bool put(struct json_writer *writer, const struct json *value);

/* Key and value. */
static bool put_member(struct json_writer *writer, const struct json *member)
{
    if (strlen(member->key.bytes) != member->key.length)
        return false;
    json_key(writer, member->key.bytes);
    return put(writer, member);
}

static bool put_all(struct json_writer *writer, const struct json *parent)
{
    bool (*const put_one)(struct json_writer *, const struct json *) =
        parent->type == JSON_OBJECT ? put_member : put;
    bool is_good = true;

    for (const struct json *one = parent->first; one && is_good; one = one->next)
        is_good = put_one(writer, one);
    return is_good;
}

static bool put(struct json_writer *writer, const struct json *value)
{
    const bool is_object = value->type == JSON_OBJECT;

    switch (value->type) {
    case JSON_NULL:
        json_put_null(writer);
        return true;
    case JSON_BOOLEAN:
        json_put_boolean(writer, value->boolean);
        return true;
    case JSON_INTEGER:
        json_put_integer(writer, value->integer);
        return true;
    case JSON_STRING:
        if (!json_c_string(value))
            return false;
        json_put_string(writer, value->string.bytes);
        return true;
    case JSON_ARRAY:
    case JSON_OBJECT:
        break;
    }
    json_begin(writer, is_object ? '{' : '[');
    const bool is_good = put_all(writer, value);
    json_end(writer, is_object ? '}' : ']');
    return is_good;
}

static bool put_linux(struct json_writer *writer, const struct json *value, const char *id)
{
    char path[128];

    snprintf(path, sizeof path, "/sevkit/%s", id);
    json_key(writer, "linux");
    json_begin(writer, '{');
    json_key(writer, "cgroupsPath");
    json_put_string(writer, path);
    for (const struct json *one = value ? value->first : NULL; one; one = one->next) {
        if (json_key_is(one, "cgroupsPath"))
            continue;
        if (!put_member(writer, one))
            return false;
    }
    json_end(writer, '}');
    return true;
}

static bool save(const struct json_writer *writer, struct failure *failure)
{
    const int fd = open(CONFIG, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    const bool is_saved =
        fd >= 0 && write(fd, writer->text, writer->length) == (ssize_t)writer->length;

    if (!is_saved)
        failure_set(failure, errno, "cannot write the configuration: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
    return is_saved;
}

bool bundle_write(const char *from, const char *text, const char *id, struct bundle *bundle,
                  struct failure *failure)
{
    struct json_writer writer = {.text = written, .size = sizeof written};

    const struct json *config = load(from, text, failure) ? parse(bundle, failure) : NULL;
    if (!config)
        return false;
    const struct json *linux_part = member(config, "linux");
    if (linux_part && linux_part->type != JSON_OBJECT)
        return refuse(failure, "linux must be an object");
    json_begin(&writer, '{');
    bool is_good = put_linux(&writer, linux_part, id);
    for (const struct json *one = config->first; one; one = one->next) {
        if (one == linux_part)
            continue;
        is_good = is_good && put_member(&writer, one);
    }
    json_end(&writer, '}');
    if (!is_good)
        return refuse(failure, "has text with a NUL in it");
    return writer.full ? refuse(failure, "is too long") : save(&writer, failure);
}

bool bundle_read(struct bundle *bundle, struct failure *failure)
{
    return load(CONFIG, NULL, failure) && parse(bundle, failure);
}
