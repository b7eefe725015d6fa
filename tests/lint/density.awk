# How long the functions of a pillar are, and how many assertions they have.
#   awk -f density.awk FILE...     prints one line; exit code 1 when there is less than one assertion
#                                  for two functions
# Assertions live where something can be wrong: one-line helpers lower the mean, and are no sin.

/^\{/ { body = FNR }
/^\}/ && body > 0 {
    functions++
    length_sum += FNR - body - 1
    if (FNR - body - 1 > longest) longest = FNR - body - 1
    body = 0
}
/(^|[^a-z_])assert\(|(^|[^a-z_])CHECK\(/ { assertions++ }

END {
    if (functions == 0) { print "no functions"; exit 1 }
    printf "%d functions, %.1f lines on average, %d at most; %d assertions, %.2f a function\n",
           functions, length_sum / functions, longest, assertions, assertions / functions
    exit assertions / functions < 0.5
}
