"""The native types under valgrind's memcheck."""
