// SPDX-License-Identifier: MIT
#include "svsm/svsm.h"

static struct svsm_message message_of(const void *data, size_t size)
{
	return (struct svsm_message){
		.size = sizeof(struct svsm_message),
		.length = size > UINT32_MAX ? UINT32_MAX : (uint32_t)size,
		.data = (void *)data,
	};
}

long svsm_send_bytes(int channel, const void *data, size_t size)
{
	struct svsm_message message = message_of(data, size);

	return svsm_send(channel, &message, SVSM_NO_DEADLINE);
}

long svsm_receive_bytes(int channel, void *data, size_t room)
{
	struct svsm_message message = message_of(data, room);

	return svsm_receive(channel, &message, SVSM_NO_DEADLINE);
}

long svsm_call_bytes(int channel, const void *request, size_t size, void *reply, size_t room)
{
	struct svsm_message out = message_of(request, size), in = message_of(reply, room);

	return svsm_call(channel, &out, &in, SVSM_NO_DEADLINE);
}

unsigned long svsm_now(void)
{
	struct timespec now = { 0 };

	clock_gettime(0, &now);
	return (unsigned long)now.tv_sec * 1000000000ul + (unsigned long)now.tv_nsec;
}
