#!/bin/sh
# SPDX-License-Identifier: MIT
# Keeps all CPUs busy until it is killed: loops, checksums through pipes, processes that come and go,
# timers. Each kind counts its rounds in /busy/KIND.N; what comes out wrong is in /busy/errors.

mkdir -p /busy
sum() {
	dd if=/dev/zero bs=64k count=64 2>/dev/null | sha256sum
}
expected=$(sum)

loop() {
	i=0
	while [ $i -lt 10000 ]; do i=$((i + 1)); done
}
sums() {
	[ "$(sum)" = "$expected" ] || echo sum >>/busy/errors
}
forks() {
	busybox true
	busybox sh -c 'exit 3' &
	wait $!
	[ $? = 3 ] || echo fork >>/busy/errors
}
pipes() {
	[ "$(yes | head -c 200000 | tr y x | tr -d '\n' | wc -c)" = 100000 ] || echo pipe >>/busy/errors
}
timers() {
	sleep 0.01
}

for number in 1 2; do
	for kind in loop sums forks pipes timers; do
		(
			rounds=0
			while :; do
				$kind
				rounds=$((rounds + 1))
				echo $rounds >/busy/$kind.$number
			done
		) &
	done
done
wait
