/* SPDX-License-Identifier: Apache-2.0 */
/* Why something could not be done: a sentence for people and an errno value for programs. */
#ifndef SEVKIT_FAILURE_H
#define SEVKIT_FAILURE_H

struct failure {
    int error;      /* an errno value */
    char what[480]; /* UTF-8 as far as the names in it are; without a full stop */
};

/* Fills in `failure`. The text of `error` is not added: say it in `format` where it helps. */
void failure_set(struct failure *failure, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
