/* SPDX-License-Identifier: Apache-2.0 */
#include "request.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#define ID_MAX ((INT64_C(1) << 53) - 1)

struct reading {
    struct request *request;
    const char **next; /* free words */
    struct failure *failure;
};

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

static bool read_argv(struct reading *reading, const struct json *value)
{
    const char *const *argv = read_strings(value, &reading->next);

    if (!argv || !argv[0] || argv[0][0] == '\0')
        return wrong(reading->failure, "argv", "must be strings, the first one not empty");
    reading->request->argv = argv;
    return true;
}

static bool read_env(struct reading *reading, const struct json *value)
{
    const char *const *env = read_strings(value, &reading->next);
    bool is_good = env != NULL;

    for (size_t i = 0; is_good && env[i]; i++)
        is_good = env[i][0] != '=' && strchr(env[i], '=');
    if (!is_good)
        return wrong(reading->failure, "env", "must be strings of the form NAME=value");
    reading->request->env = env;
    return true;
}

static bool read_cwd(struct reading *reading, const struct json *value)
{
    reading->request->cwd = json_c_string(value);
    if (!reading->request->cwd || reading->request->cwd[0] != '/')
        return wrong(reading->failure, "cwd", "must be an absolute path");
    return true;
}

/* Of characters that are harmless in a path. */
static bool is_name(const char *name, size_t most)
{
    static const char characters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";
    const size_t length = strlen(name);

    return length > 0 && length <= most && strspn(name, characters) == length &&
           !strchr("_.-", name[0]);
}

static bool read_rootfs(struct reading *reading, const struct json *value)
{
    struct request *request = reading->request;
    const bool is_create = request->method == METHOD_CREATE;
    const char *type = NULL;
    const struct json *tag = NULL;

    if (value->type == JSON_NULL && !is_create)
        return true;
    if (value->type != JSON_OBJECT)
        return wrong(reading->failure, "rootfs",
                     is_create ? "must be an object" : "must be null or an object");
    for (const struct json *member = value->first; member; member = member->next) {
        if (json_key_is(member, "type"))
            type = json_c_string(member);
        else if (json_key_is(member, "tag"))
            tag = member;
        else
            return wrong(reading->failure, "rootfs",
                         "has a key that is neither 'type' nor 'tag'");
    }
    if (is_create && type && strcmp(type, "image") == 0) {
        request->root = ROOT_IMAGE;
        return tag ? wrong(reading->failure, "rootfs.tag", "is for a 9p share") : true;
    }
    if (!type || strcmp(type, "9p") != 0)
        return wrong(reading->failure, "rootfs.type",
                     is_create ? "must be '9p' or 'image'" : "must be '9p'");
    request->root = ROOT_9P;
    request->tag = tag ? json_c_string(tag) : NULL;
    if (!request->tag || !is_name(request->tag, TAG_MAX))
        return wrong(reading->failure, "rootfs.tag",
                     "must be 1 to 31 of A-Z a-z 0-9 _ . -, the first a letter or digit");
    return true;
}

static bool read_stdin(struct reading *reading, const struct json *value)
{
    if (value->type != JSON_BOOLEAN)
        return wrong(reading->failure, "stdin", "must be true or false");
    reading->request->relays_stdin = value->boolean;
    return true;
}

static bool read_number(struct reading *reading, const char *key, const struct json *value,
                        int64_t least, int64_t most, int64_t *number)
{
    if (value->type != JSON_INTEGER || value->integer < least || value->integer > most) {
        failure_set(reading->failure, EINVAL, "%s: must be a number from %lld to %lld", key,
                    (long long)least, (long long)most);
        return false;
    }
    *number = value->integer;
    return true;
}

static bool read_rows(struct reading *reading, const struct json *value)
{
    int64_t number = 0;
    const bool is_good = read_number(reading, "rows", value, 1, UINT16_MAX, &number);
    reading->request->rows = (uint16_t)number;
    return is_good;
}

static bool read_columns(struct reading *reading, const struct json *value)
{
    int64_t number = 0;
    const bool is_good = read_number(reading, "columns", value, 1, UINT16_MAX, &number);
    reading->request->columns = (uint16_t)number;
    return is_good;
}

static bool read_tty(struct reading *reading, const struct json *value)
{
    if (value->type == JSON_NULL)
        return true;
    if (value->type != JSON_OBJECT)
        return wrong(reading->failure, "tty", "must be null or an object");
    for (const struct json *member = value->first; member; member = member->next) {
        if (json_key_is(member, "rows") ? !read_rows(reading, member)
            : json_key_is(member, "columns")
                ? !read_columns(reading, member)
                : !wrong(reading->failure, "tty",
                         "has a key that is neither 'rows' nor 'columns'"))
            return false;
    }
    reading->request->has_tty = true;
    return true;
}

static bool read_process(struct reading *reading, const struct json *value)
{
    return read_number(reading, "process", value, 1, UINT16_MAX, &reading->request->process);
}

static bool read_signal(struct reading *reading, const struct json *value)
{
    int64_t number = 0;
    const bool is_good = read_number(reading, "signal", value, 1, 64, &number);
    reading->request->signal = (int)number;
    return is_good;
}

static bool read_container(struct reading *reading, const struct json *value)
{
    reading->request->container = json_c_string(value);
    if (!reading->request->container || !is_name(reading->request->container, CONTAINER_ID_MAX))
        return wrong(reading->failure, "container",
                     "must be 1 to 64 of A-Z a-z 0-9 _ . -, the first a letter or digit");
    return true;
}

static bool read_config(struct reading *reading, const struct json *value)
{
    if (value->type == JSON_NULL)
        return true;
    reading->request->config = json_c_string(value);
    if (!reading->request->config)
        return wrong(reading->failure, "config", "must be null or a string");
    return true;
}

static bool read_user(struct reading *reading, const struct json *value)
{
    if (value->type != JSON_OBJECT)
        return wrong(reading->failure, "user", "must be an object");
    for (const struct json *member = value->first; member; member = member->next) {
        const bool is_uid = json_key_is(member, "uid");
        int64_t number = 0;
        if (!is_uid && !json_key_is(member, "gid"))
            return wrong(reading->failure, "user", "has a key that is neither 'uid' nor 'gid'");
        if (!read_number(reading, is_uid ? "user.uid" : "user.gid", member, 0, UINT32_MAX - 1,
                         &number))
            return false;
        *(is_uid ? &reading->request->uid : &reading->request->gid) = (uint32_t)number;
    }
    return true;
}

/* Exactly `count` bytes, two digits each. */
static bool read_hex(const struct json *value, uint8_t *bytes, size_t count)
{
    static const char digits[] = "00112233445566778899aAbBcCdDeEfF";
    const char *text = json_c_string(value);

    if (!text || strlen(text) != 2 * count)
        return false;
    for (size_t i = 0; i < 2 * count; i++) {
        const char *digit = strchr(digits, text[i]);
        if (!digit)
            return false;
        bytes[i / 2] = (uint8_t)(bytes[i / 2] << 4 | (digit - digits) / 2);
    }
    return true;
}

static bool read_data(struct reading *reading, const struct json *value)
{
    return read_hex(value, reading->request->data, REPORT_DATA_BYTES) ||
           wrong(reading->failure, "data", "must be 128 hexadecimal digits");
}

static bool read_seed(struct reading *reading, const struct json *value)
{
    uint8_t bytes[8] = {0};

    if (!read_hex(value, bytes, sizeof bytes))
        return wrong(reading->failure, "seed", "must be 16 hexadecimal digits");
    for (size_t i = 0; i < sizeof bytes; i++)
        reading->request->seed = reading->request->seed << 8 | bytes[i];
    return true;
}

#define TAKES(method) (1U << (method))

static const struct {
    const char *name;
    bool (*read)(struct reading *reading, const struct json *value);
    unsigned int optional_in;
    unsigned int required_in;
} params[] = {
    {"argv", read_argv, 0, TAKES(METHOD_RUN) | TAKES(METHOD_EXEC)},
    {"env", read_env, TAKES(METHOD_RUN) | TAKES(METHOD_EXEC), 0},
    {"cwd", read_cwd, TAKES(METHOD_RUN) | TAKES(METHOD_EXEC), 0},
    {"rootfs", read_rootfs, TAKES(METHOD_RUN) | TAKES(METHOD_CREATE), 0},
    {"stdin", read_stdin, TAKES(METHOD_RUN) | TAKES(METHOD_EXEC) | TAKES(METHOD_CREATE), 0},
    {"tty", read_tty, TAKES(METHOD_RUN) | TAKES(METHOD_EXEC), 0},
    {"rows", read_rows, TAKES(METHOD_CREATE), TAKES(METHOD_RESIZE)},
    {"columns", read_columns, TAKES(METHOD_CREATE), TAKES(METHOD_RESIZE)},
    {"process", read_process, 0,
     TAKES(METHOD_WAIT) | TAKES(METHOD_SIGNAL) | TAKES(METHOD_RESIZE)},
    {"signal", read_signal, 0, TAKES(METHOD_SIGNAL)},
    {"container", read_container, 0,
     TAKES(METHOD_CREATE) | TAKES(METHOD_START) | TAKES(METHOD_EXEC) | TAKES(METHOD_STATS) |
         TAKES(METHOD_DELETE)},
    {"config", read_config, TAKES(METHOD_CREATE), 0},
    {"user", read_user, TAKES(METHOD_EXEC), 0},
    {"data", read_data, 0, TAKES(METHOD_ATTEST)},
    {"seed", read_seed, 0, TAKES(METHOD_MARKER)},
};

enum { PARAMS = sizeof params / sizeof params[0] };

static const char *const method_names[METHODS] = {
    [METHOD_RUN] = "run",       [METHOD_WAIT] = "wait",     [METHOD_SIGNAL] = "signal",
    [METHOD_RESIZE] = "resize", [METHOD_CREATE] = "create", [METHOD_START] = "start",
    [METHOD_EXEC] = "exec",     [METHOD_STATS] = "stats",   [METHOD_DELETE] = "delete",
    [METHOD_REPORT] = "report", [METHOD_ATTEST] = "attest", [METHOD_MARKER] = "marker",
    [METHOD_SHUTDOWN] = "shutdown",
};

bool envelope_read(const struct json *message, struct envelope *envelope)
{
    *envelope = (struct envelope){0};
    if (message->type != JSON_OBJECT)
        return false;
    for (const struct json *member = message->first; member; member = member->next) {
        if (json_key_is(member, "id") && member->type == JSON_INTEGER)
            envelope->id = member->integer;
        else if (json_key_is(member, "method") && member->type == JSON_STRING)
            envelope->method = member;
        else if (json_key_is(member, "params") && member->type == JSON_OBJECT)
            envelope->params = member;
        else
            return false;
    }
    return envelope->id >= 1 && envelope->id <= ID_MAX && envelope->method && envelope->params;
}

static bool find_method(const struct json *name, enum method *method)
{
    const char *text = json_c_string(name);

    for (size_t i = 0; text && i < METHODS; i++) {
        if (strcmp(text, method_names[i]) == 0) {
            *method = (enum method)i;
            return true;
        }
    }
    return false;
}

bool request_read(const struct envelope *envelope, struct request_words *words,
                  struct request *request, struct failure *failure)
{
    static const char *const no_words[] = {NULL};
    struct reading reading = {request, words->pointers, failure};
    unsigned int seen = 0;

    *request = (struct request){
        .id = envelope->id, .env = no_words, .cwd = "/", .rows = 24, .columns = 80};
    if (!find_method(envelope->method, &request->method)) {
        failure_set(failure, ENOSYS, "no such method: %.100s", envelope->method->string.bytes);
        return false;
    }
    if (request->method == METHOD_CREATE)
        request->root = ROOT_IMAGE;
    const unsigned int method = TAKES(request->method);
    for (const struct json *member = envelope->params->first; member; member = member->next) {
        size_t i = 0;
        while (i < PARAMS && (!json_key_is(member, params[i].name) ||
                              ((params[i].optional_in | params[i].required_in) & method) == 0))
            i++;
        if (i == PARAMS) {
            failure_set(failure, EINVAL, "%.100s: no such key", member->key.bytes);
            return false;
        }
        seen |= 1U << i;
        if (!params[i].read(&reading, member))
            return false;
    }
    for (size_t i = 0; i < PARAMS; i++) {
        if ((params[i].required_in & method) != 0 && (seen >> i & 1) == 0)
            return wrong(failure, params[i].name, "is missing");
    }
    return true;
}
