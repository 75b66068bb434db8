#!/bin/sh
# Stands for an emulator in tests: does what the file beside the image says.
arguments="$*"
while [ "$1" != -kernel ]; do shift; done
image=$2
set -- $arguments
. "$image.sh"
