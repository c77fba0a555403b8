#ifndef SHORTCONV_VERSION_H
#define SHORTCONV_VERSION_H

/* The one place where the version stands; CMake reads it from here. */
#define SHORTCONV_VERSION_MAJOR 0
#define SHORTCONV_VERSION_MINOR 1
#define SHORTCONV_VERSION_PATCH 0

#endif
