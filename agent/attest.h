/* SPDX-License-Identifier: Apache-2.0 */
/* The SNP attestation report, through configfs-tsm or the older ioctl of /dev/sev-guest. */
#ifndef SEVKIT_ATTEST_H
#define SEVKIT_ATTEST_H

#include "report.h"
#include "request.h"

struct attest {
    const struct request *request; /* its data is what the report binds */
    const struct report_facts *facts;
};

/* The `work` of a job, since the firmware may take its time; its context is a `struct attest`. Says
 * the result of `attest` as JSON, or what is missing. */
void attest_report(void *context, int outcome_fd);

#endif
