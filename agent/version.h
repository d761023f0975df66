/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SEVKIT_VERSION_H
#define SEVKIT_VERSION_H

#define AGENT_VERSION "0.2.0"

#endif
