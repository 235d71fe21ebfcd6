# The comments of nsa.h as Doxygen wants them: /* above a declaration becomes /**, beside one /**<, and a line
# /* ---- Title ---- starts a group of members. Keeps the lines' numbers.
NR == 1 { print "/** @file"; next }
/^\/\* ---- / {
    title = $0
    sub(/^\/\* ---- /, "", title)
    sub(/ -+( \*\/)?$/, "", title)
    close_last = open++ ? "/** @} */ " : ""
    heading = !/\*\/$/
    printf "%s/** @name %s%s\n", close_last, title, heading ? "" : " */ /** @{ */"
    next
}
heading && /\*\/$/ { heading = 0; print $0 " /** @{ */"; next }
/^ *\/\*/ { sub(/\/\*/, "/**") }
/[^ ] +\/\* / { sub(/\/\* /, "/**< ") }
{ print }
END { print "/** @} */" }
