/* SPDX-License-Identifier: MIT */
/* The end of a boot that cannot go on. */
#include "stages.h"

/* Where the keys lie in the secrets page (56860, "Secrets page format"): VMPCK0 to VMPCK3. */
#define SECRETS_VMPCKS 0x20
#define SECRETS_VMPCKS_SIZE 0x80

static uint64_t secrets_page;
static bool panicking;

void panic_wipes(uint64_t secrets)
{
	secrets_page = secrets;
}

void panic(unsigned int code, const char *format, ...)
{
	va_list arguments;

	/* A fault in here would come here again. */
	if (panicking)
		ghcb_terminate(code);
	panicking = true;
	if (secrets_page)
		memset((void *)(secrets_page + SECRETS_VMPCKS), 0, SECRETS_VMPCKS_SIZE);
	va_start(arguments, format);
	print_arguments(format, arguments);
	va_end(arguments);
	if (secrets_page)
		print_line("stage 2: the keys to the security processor are wiped");
	ghcb_terminate(code);
}

void stage2_exception(const struct stage2_frame *frame)
{
	panic(SVSM_REASON_EXCEPTION, "panic: stage 2: exception %lu at %lx, error code %lx, CR2 %lx",
	      frame->vector, frame->rip, frame->error_code, frame->cr2);
}
