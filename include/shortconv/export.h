#ifndef SHORTCONV_EXPORT_H
#define SHORTCONV_EXPORT_H

/* Everything else in the library is compiled with hidden visibility. */
#define SHORTCONV_API __attribute__((visibility("default")))

#endif
