/* SPDX-License-Identifier: Apache-2.0 */
#include "request.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

const struct json *message_body(const struct json *message)
{
    if (message->type != JSON_OBJECT || !message->first || message->first->next)
        return NULL;
    return message->first;
}

static bool wrong(struct failure *failure, const char *key, const char *need)
{
    failure_set(failure, EINVAL, "%s: %s", key, need);
    return false;
}

/* Copies the strings of an array behind `*next` and ends them with NULL. */
static const char *const *read_strings(const struct json *array, const char ***next)
{
    const char **first = *next;

    if (array->type != JSON_ARRAY)
        return NULL;
    for (const struct json *item = array->first; item; item = item->next) {
        const char *string = json_c_string(item);
        if (!string)
            return NULL;
        *(*next)++ = string;
    }
    *(*next)++ = NULL;
    return first;
}

static bool are_assignments(const char *const *env)
{
    for (; *env; env++) {
        const char *equals = strchr(*env, '=');
        if (!equals || equals == *env)
            return false;
    }
    return true;
}

static bool read_rootfs(const struct json *rootfs, struct run_request *request,
                        struct failure *failure)
{
    const char *type = NULL;

    if (rootfs->type == JSON_NULL)
        return true;
    if (rootfs->type != JSON_OBJECT)
        return wrong(failure, "rootfs", "must be null or an object");
    for (const struct json *member = rootfs->first; member; member = member->next) {
        if (json_key_is(member, "type"))
            type = json_c_string(member);
        else if (json_key_is(member, "tag"))
            request->rootfs_tag = json_c_string(member);
        else
            return wrong(failure, "rootfs", "has a key that is neither 'type' nor 'tag'");
    }
    if (!type || strcmp(type, "9p") != 0)
        return wrong(failure, "rootfs.type", "must be '9p'");
    if (!request->rootfs_tag || request->rootfs_tag[0] == '\0')
        return wrong(failure, "rootfs.tag", "must name a 9p share");
    return true;
}

bool run_request_read(const struct json *body, struct run_words *words,
                      struct run_request *request, struct failure *failure)
{
    static const char *const no_words[] = {NULL};
    const char **next = words->pointers;

    *request = (struct run_request){.env = no_words, .cwd = "/"};
    if (body->type != JSON_OBJECT)
        return wrong(failure, "run", "must be an object");
    for (const struct json *member = body->first; member; member = member->next) {
        if (json_key_is(member, "argv")) {
            request->argv = read_strings(member, &next);
            if (!request->argv || !request->argv[0] || request->argv[0][0] == '\0')
                return wrong(failure, "argv", "must be strings, the first one not empty");
        } else if (json_key_is(member, "env")) {
            request->env = read_strings(member, &next);
            if (!request->env || !are_assignments(request->env))
                return wrong(failure, "env", "must be strings of the form NAME=value");
        } else if (json_key_is(member, "cwd")) {
            request->cwd = json_c_string(member);
            if (!request->cwd || request->cwd[0] != '/')
                return wrong(failure, "cwd", "must be an absolute path");
        } else if (json_key_is(member, "rootfs")) {
            if (!read_rootfs(member, request, failure))
                return false;
        } else if (json_key_is(member, "stdin")) {
            if (member->type != JSON_BOOLEAN)
                return wrong(failure, "stdin", "must be true or false");
            request->relays_stdin = member->boolean;
        } else {
            failure_set(failure, EINVAL, "%.100s: no such key", member->key.bytes);
            return false;
        }
    }
    if (!request->argv)
        return wrong(failure, "argv", "is missing");
    return true;
}
