# Rules that no compiler knows, over C and CUDA sources. Prints "CHECK file:line: what", one a find.
#   LC_ALL=C awk -f tidy.awk FILE...
# Relies on the format that clang-format gives: a function's braces stand at the line's beginning.

function find(check, what) { print check " " FILENAME ":" FNR ": " what }

function base(path) { sub(/.*\//, "", path); return path }

function finish_file() {
    if (lines > 800) print "file-length " previous ":" lines ": more than 800 lines: two ideas"
}

# ---- includes: which room may see which ----

function may_include(from, to) {
    if (from == to || from == "tests" || from == "server") return to != "tests" || from == "tests"
    return (from == "model" && to == "kernels") || (from == "scheduler" && to == "kvcache")
}

function check_include(line,    path, to, name) {
    path = line
    sub(/^[ \t]*#[ \t]*include[ \t]*[<"]/, "", path); sub(/[>"].*/, "", path)
    name = base(path)
    if (line ~ /include[ \t]*"/ && path ~ /\//) {
        to = path; sub(/\/.*/, "", to)
        if (to ~ /^(kernels|kvcache|model|scheduler|server|tests)$/ && !may_include(room, to))
            find("include-direction", room " may not include " path)
        if (path ~ /^kernels\/(cpu|cuda)\// && room != "kernels" && room != "tests")
            find("include-direction", path " is the backend's own")
        if (path ~ /_private\.h$/ && room != to && room != "tests")
            find("include-direction", path " is private to " to)
    }
    if (name == "microhttpd.h" && FILENAME != "server/http.c" && room != "tests")
        find("include-library", "microhttpd.h belongs into server/http.c")
    if (name == "cJSON.h" && FILENAME !~ /^server\/(fields|api_[a-z_]+)\.c$/ &&
        room != "model" && room != "tests")
        find("include-library", "cJSON.h belongs into server/fields.c and server/api_*.c")
    if (name == "yaml.h" && FILENAME != "server/config_yaml.c")
        find("include-library", "yaml.h belongs into server/config_yaml.c")
    if (name ~ /^(cuda.*|cublas.*|nccl.*|mma)\.h$/ && FILENAME !~ /^kernels\/(cuda\/|backend_cuda)/)
        find("include-library", name " belongs into kernels/cuda/")
}

# ---- a paragraph of a header: lines without an empty one between ----

function finish_paragraph() {
    if (header && prototype_line > 0 && !commented)
        print "header-comment " previous ":" prototype_line ": a public function without a comment"
    prototype_line = 0
    commented = 0
}

function is_prototype(line) {
    return line ~ /^[a-zA-Z_][a-zA-Z0-9_ *]*[ *][a-z_0-9]+\(/ &&
           line !~ /^(static|INLINE|typedef|extern|return|else|__attribute__)/ && line !~ /^[A-Z_]+\(/
}

# ---- one pass ----

FNR == 1 {
    finish_paragraph()
    finish_file()
    lines = 0; body = 0; comment = 0; function_name = ""
    previous = FILENAME
    room = FILENAME; sub(/\/.*/, "", room)
    header = FILENAME ~ /\.h$/ && room != "tests"
    pure = room == "kvcache" || room == "scheduler"
    test = room == "tests"
    speaks = FILENAME ~ /^server\/(log|main|command|cmd_[a-z_]+|config_print)\.c$/ || test
    if ($0 !~ /^\/[*\/]/) find("first-comment", "a file begins with a comment that says what it is")
}

{
    lines = FNR
    raw = $0
    columns = raw
    gsub(/[\200-\277]/, "", columns)
    if (length(columns) > 100) find("line-length", length(columns) " columns, more than 100")
    if (raw ~ /(^|[^A-Za-z_])(TODO|FIXME|XXX)($|[^A-Za-z_])/) find("open-ends", "do it, or file it")
    if (raw ~ /\/(work|root)\// || raw ~ /\/home\//) find("own-machine", "a path of one machine")
    if (room ~ /^(kernels|kvcache|model|scheduler)$/ && raw ~ /(^|[^A-Za-z_])[Rr]equests?($|[^A-Za-z_])/)
        find("words", "\"request\" is a word of the server; say sequence, row or call")

    # The code of the line: without strings and comments.
    code = raw
    gsub(/\\./, "", code)
    gsub(/"[^"]*"/, "\"\"", code)
    gsub(/'[^']*'/, "0", code)
    had_comment = comment || code ~ /\/[*\/]/
    if (comment) {
        if (code ~ /\*\//) { sub(/^.*\*\//, "", code); comment = 0 } else code = ""
    }
    while (match(code, /\/\*[^*]*\*+([^*\/][^*]*\*+)*\//))
        code = substr(code, 1, RSTART - 1) substr(code, RSTART + RLENGTH)
    if (match(code, /\/\*/)) { code = substr(code, 1, RSTART - 1); comment = 1 }
    sub(/\/\/.*/, "", code)

    if (had_comment) commented = 1
    if (raw ~ /^[ \t]*$/) finish_paragraph()
    if (raw ~ /^[ \t]*#[ \t]*include/) check_include(raw)

    if (body == 0 && is_prototype(code)) {
        function_name = code
        sub(/\(.*/, "", function_name)
        sub(/.*[ *]/, "", function_name)
        if (code ~ /;[ \t]*$/ || header) prototype_line = FNR
    }
    if (code ~ /^\{/ && function_name != "") { body = FNR; body_line = FNR }
    if (body > 0) {
        if (code ~ /^[ \t]*#[ \t]*(if|ifdef|ifndef|else|elif)/)
            find("conditional-in-function", "choose whole functions, not lines in them")
        if (code ~ /^\}/) {
            if (FNR - body - 1 > 70) find("function-length", function_name " has " (FNR - body - 1) " lines, more than 70")
            body = 0
            function_name = ""
        }
    }
    if (!speaks && code ~ /(^|[^A-Za-z0-9_])(printf|fprintf|vprintf|vfprintf|puts|fputs|putchar|fputc|perror|dprintf)[ \t]*\(/)
        find("print", "what operators see goes through log.c")
    if (pure && body > 0 && function_name !~ /_create$/ &&
        code ~ /(^|[^A-Za-z0-9_])(malloc|calloc|realloc|aligned_alloc|posix_memalign|strdup|mmap)[ \t]*\(/)
        find("allocation", function_name ": the deciding pillar allocates in its _create functions only")
    if (pure && code ~ /(^|[^A-Za-z0-9_])(clock_gettime|time|rand|random|pthread_[a-z_]+|open|read|write|getpid)[ \t]*\(/)
        find("purity", "the deciding pillar has no clock, chance, lock or I/O")
    if (FILENAME != "server/config.c" && !test && code ~ /(^|[^A-Za-z0-9_])(getenv|secure_getenv)[ \t]*\(/)
        find("environment", "getenv belongs into server/config.c")
    if (!test && code ~ /(^|[^A-Za-z0-9_])(strcpy|strcat|sprintf|gets|atoi|atol|atof|alloca)[ \t]*\(/)
        find("unbounded", "use the function that knows the size")
    if (code ~ /(^|[^A-Za-z0-9_])typedef[ \t]+(struct|enum|union)/) find("typedef", "struct foo, no typedef")
}

END {
    finish_paragraph()
    finish_file()
}
