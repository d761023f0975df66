/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bundle.h"
#include "expect.h"
#include "textfile.h"

static char text[2 * BUNDLE_CONFIG_MAX];

static bool take(const char *config, struct bundle *bundle, struct failure *failure)
{
    unlink("config.json");
    *bundle = (struct bundle){0};
    failure->error = 0;
    return bundle_write("from-image", config, "a-1", bundle, failure);
}

static void the_cgroup_is_set_and_nothing_else_changed(void)
{
    static const struct {
        const char *given;
        const char *written;
    } cases[] = {
        {"{\"root\":{\"path\":\"rootfs\"}}",
         "{\"linux\":{\"cgroupsPath\":\"/sevkit/a-1\"},\"root\":{\"path\":\"rootfs\"}}"},
        {"{\"root\" : {\"path\":\"rootfs\",\"readonly\":true}, \"linux\":{\"a\":[1,-2,null],"
         "\"cgroupsPath\":\"/\",\"b\":{}}, \"hostname\":\"\\u00e9\\u0009\"}",
         "{\"linux\":{\"cgroupsPath\":\"/sevkit/a-1\",\"a\":[1,-2,null],\"b\":{}},"
         "\"root\":{\"path\":\"rootfs\",\"readonly\":true},\"hostname\":\"\303\251\\u0009\"}"},
    };
    struct bundle bundle;
    struct failure failure;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        EXPECT(take(cases[i].given, &bundle, &failure), cases[i].given);
        EXPECT(textfile_read(AT_FDCWD, "config.json", text, sizeof text), "written");
        EXPECT(strcmp(text, cases[i].written) == 0, text);
    }
}

static void what_the_agent_needs_to_know_is_found_and_found_again(void)
{
    struct bundle bundle;
    struct failure failure;

    EXPECT(take("{\"root\":{\"path\":\"rootfs\"},\"process\":{\"terminal\":true,"
                "\"noNewPrivileges\":true}}",
                &bundle, &failure),
           "good");
    EXPECT(bundle.has_terminal && bundle.forbids_new_privileges, "both");
    bundle = (struct bundle){0};
    EXPECT(bundle_read(&bundle, &failure), "again");
    EXPECT(bundle.has_terminal && bundle.forbids_new_privileges, "both again");
    EXPECT(take("{\"root\":{\"path\":\"rootfs\"},\"process\":{\"terminal\":0}}", &bundle, &failure),
           "good");
    EXPECT(!bundle.has_terminal && !bundle.forbids_new_privileges, "neither");
}

static void what_is_not_clear_is_refused(void)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{}",
        "{\"root\":{\"path\":\"/\"}}",
        "{\"root\":{\"path\":\"rootfs\\u0000\"}}",
        "{\"root\":{\"path\":\"rootfs\"},\"root\":{\"path\":\"rootfs\"}}",
        "{\"root\":{\"path\":\"rootfs\"},\"linux\":null}",
        "{\"root\":{\"path\":\"rootfs\"},\"hostname\":\"a\\u0000b\"}",
        "{\"root\":{\"path\":\"rootfs\"},\"a\":{\"k\\u0000\":1}}",
        "{\"root\\u0000\":{\"path\":\"/\"},\"root\":{\"path\":\"rootfs\"}}",
        "{\"root\":{\"path\":\"rootfs\"},\"linux\\u0000x\":{\"cgroupsPath\":\"/\"}}",
        "{\"root\":{\"path\":\"rootfs\"},\"linux\":{\"cgroupsPath\\u0000\":\"/\"}}",
        "{\"root\":{\"path\":\"rootfs\"},\"a\":1.5}",
    };
    struct bundle bundle;
    struct failure failure;

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        EXPECT(!take(bad[i], &bundle, &failure) && failure.error == EINVAL, bad[i]);
        EXPECT(access("config.json", F_OK) != 0, "nothing written");
    }
    memset(text, ' ', sizeof text);
    strcpy(text + BUNDLE_CONFIG_MAX, "{\"root\":{\"path\":\"rootfs\"}}");
    EXPECT(!take(text, &bundle, &failure) && failure.error == EINVAL, "too long");
}

static void a_file_is_as_good_as_text(void)
{
    struct bundle bundle;
    struct failure failure;

    EXPECT(!take(NULL, &bundle, &failure) && failure.error == ENOENT, "no file");
    FILE *file = fopen("from-image", "w");
    if (!file)
        abort();
    fputs("{\"root\":{\"path\":\"rootfs\"}}\n", file);
    fclose(file);
    EXPECT(take(NULL, &bundle, &failure), "a file");
    unlink("from-image");
    EXPECT(!bundle_write(NULL, "{\"root\":{\"path\":\"rootfs\"}}", "a-1", &bundle, &failure) &&
               failure.error == EEXIST,
           "nothing is overwritten");
}

int main(void)
{
    char folder[] = "/tmp/test_bundle-XXXXXX";

    if (!mkdtemp(folder) || chdir(folder) != 0)
        return 1;
    the_cgroup_is_set_and_nothing_else_changed();
    what_the_agent_needs_to_know_is_found_and_found_again();
    what_is_not_clear_is_refused();
    a_file_is_as_good_as_text();
    unlink("config.json");
    rmdir(folder);
    return expect_failures != 0;
}
