/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "expect.h"
#include "json.h"

static struct json_pool pool;

/* Each is as long as it says: what follows must not be looked at. */
#define TEXT(literal) {(literal), sizeof(literal) - 1}

static const struct json_text accepted[] = {
    TEXT("{}"),
    TEXT(" [ ] "),
    TEXT("null"),
    TEXT("{\"a\":{\"b\":[1,-2,true,false,null,\"\"]},\"c\":0}"),
    TEXT("-9223372036854775808"),
    TEXT("9223372036854775807"),
    TEXT("\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\""),
    TEXT("\"\\u00e9\\ud83d\\ude00\\u0000\\n\""),
    TEXT("[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]"),
    TEXT("{\"a\":1,\"A\":1,\"a\\u0000\":1}"),
};

static const struct json_text refused[] = {
    TEXT(""),
    TEXT(" "),
    TEXT("{"),
    TEXT("[1,]"),
    TEXT("[1 2]"),
    TEXT("{\"a\":1,}"),
    TEXT("{\"a\"}"),
    TEXT("{a:1}"),
    TEXT("{\"a\":1,\"a\":1}"),
    TEXT("{\"a\":1,\"\\u0061\":1}"),
    TEXT("{} {}"),
    TEXT("{}x"),
    TEXT("01"),
    TEXT("-"),
    TEXT("- 1"),
    TEXT("+1"),
    TEXT("1.0"),
    TEXT("1e3"),
    TEXT("9223372036854775808"),
    TEXT("-9223372036854775809"),
    TEXT("99999999999999999999999999"),
    TEXT("tru"),
    TEXT("truely"),
    TEXT("NaN"),
    TEXT("\""),
    TEXT("\"\\"),
    TEXT("\"\\\""),
    TEXT("\"\\u12\""),
    TEXT("\"\\u12"),
    TEXT("\"\\x41\""),
    TEXT("\"\\ud83d\""),
    TEXT("\"\\ud83d\\u0041\""),
    TEXT("\"\\ude00\""),
    TEXT("\"\n\""),
    TEXT("\"\xff\""),
    TEXT("\"\xc0\x80\""),
    TEXT("\"\xed\xa0\x80\""),
    TEXT("\"\xf4\x90\x80\x80\""),
    TEXT("\"\xe2\x82\""),
    TEXT("\"\xe2\x82"),
    TEXT("[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]"),
    TEXT("{}\0"),
};

static const struct json *read_copy(const struct json_text *text, char *copy, const char **problem)
{
    memcpy(copy, text->bytes, text->length);
    copy[text->length] = '"'; /* would end a string that runs on */
    return json_read(&pool, copy, text->length, problem);
}

static void strict_reading(void)
{
    char copy[128];
    const char *problem;

    for (size_t i = 0; i < sizeof accepted / sizeof accepted[0]; i++) {
        EXPECT(read_copy(&accepted[i], copy, &problem) != NULL, accepted[i].bytes);
        EXPECT(problem == NULL, accepted[i].bytes);
    }
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        EXPECT(read_copy(&refused[i], copy, &problem) == NULL, refused[i].bytes);
        EXPECT(problem != NULL, refused[i].bytes);
    }
}

static void values_come_out_as_written(void)
{
    char text[] = "{\"n\":-42,\"s\":\"a\\u00e9\\ud83d\\ude00\\\"\\/\",\"z\":\"a\\u0000b\",\"t\":true}";
    const char *problem;

    const struct json *object = json_read(&pool, text, sizeof text - 1, &problem);
    EXPECT(object && object->type == JSON_OBJECT, "object");
    if (!object)
        return;
    const struct json *number = object->first;
    const struct json *string = number->next;
    const struct json *zero = string->next;
    const struct json *yes = zero->next;
    EXPECT(json_key_is(number, "n") && !json_key_is(number, "nn"), "key");
    EXPECT(number->type == JSON_INTEGER && number->integer == -42, "number");
    EXPECT(json_c_string(string) &&
               strcmp(json_c_string(string), "a\xc3\xa9\xf0\x9f\x98\x80\"/") == 0,
           "string");
    EXPECT(zero->string.length == 3 && json_c_string(zero) == NULL, "a NUL is no C string");
    EXPECT(yes->type == JSON_BOOLEAN && yes->boolean && !yes->next, "boolean");
    EXPECT(json_c_string(number) == NULL, "a number is no C string");
}

static void too_many_values_are_refused(void)
{
    static char text[2 * JSON_VALUES_MAX + 2];
    const char *problem;

    memset(text, '1', sizeof text);
    text[0] = '[';
    for (size_t i = 2; i < sizeof text; i += 2)
        text[i] = ',';
    /* The array itself is one of the values. */
    const size_t most = 2 * (JSON_VALUES_MAX - 1);
    text[most] = ']';
    EXPECT(json_read(&pool, text, most + 1, &problem) != NULL, "the limit");
    text[most] = ',';
    text[most + 2] = ']';
    EXPECT(json_read(&pool, text, most + 3, &problem) == NULL, "one over");
}

static void writing_escapes(void)
{
    static const char wanted[] =
        "{\"k\\\"\":[\"\\u0001\\u000a\\\\\xc3\xa9\\ufffd\\ufffd\",-1,true,null,{},[]],\"e\":false}";
    char text[sizeof wanted];
    struct json_writer writer = {.text = text, .size = sizeof wanted - 1};
    struct json_writer small = {.text = text, .size = 3};

    json_begin(&writer, '{');
    json_key(&writer, "k\"");
    json_begin(&writer, '[');
    json_put_string(&writer, "\x01\n\\\xc3\xa9\xff\xc3");
    json_put_integer(&writer, -1);
    json_put_boolean(&writer, true);
    json_put_null(&writer);
    json_begin(&writer, '{');
    json_end(&writer, '}');
    json_begin(&writer, '[');
    json_end(&writer, ']');
    json_end(&writer, ']');
    json_key(&writer, "e");
    json_put_boolean(&writer, false);
    json_end(&writer, '}');
    text[writer.length] = '\0';
    EXPECT(!writer.full && strcmp(text, wanted) == 0, text);
    json_put_null(&writer);
    EXPECT(writer.full, "over the end");
    json_put_string(&small, "ab");
    EXPECT(small.full && small.length <= 3, "a string over the end");
}

int main(void)
{
    strict_reading();
    values_come_out_as_written();
    too_many_values_are_refused();
    writing_escapes();
    return expect_failures != 0;
}
