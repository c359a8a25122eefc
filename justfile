# `ops/just` installs what is missing and runs this file; without arguments it lists what there is.
# Recipes run at the repository root: relative paths in their arguments count from there.

# So that "$@" hands arguments on as they came, spaces and quotes included.
set positional-arguments
set ignore-comments

target := absolute_path(env("CARGO_TARGET_DIR", "target"))

_list:
    @just --justfile '{{ justfile() }}' --list --unsorted

# Compile, then show the platform at work, with all it needs, on this machine
[group('run')]
[no-exit-message]
demo *ARGS:
    @cargo run --release -p expediter -- dev "$@"

# Run `expediter` with ARGS
[group('run')]
[no-exit-message]
run *ARGS:
    @cargo run --release -p expediter -- "$@"

# Run the benchmark NAME
[group('run')]
[no-exit-message]
bench NAME *ARGS:
    @cargo run --release -p expediter -- bench "$@"

# Break a cluster of processes on this machine, and judge what became of the orders
[group('run')]
[no-exit-message]
chaos *ARGS:
    @cargo build --release -p expediter -p expediter-load
    @'{{ target }}/release/expediter-chaos' "$@"

# Check that everything compiles, without building it
[group('change')]
check:
    cargo check --workspace --all-targets

# Format the code
[group('change')]
fmt:
    cargo fmt --all

# Refuse what is not formatted, and every warning
[group('change')]
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Run the tests, or those whose names contain FILTER
[group('change')]
test *FILTER:
    # One build for the binary under test and the tests: built apart, their dependencies'
    # features differ, and much is compiled twice.
    cargo build --workspace --bins --tests
    EXPEDITER_TEST_BIN='{{ target }}/debug/expediter' cargo test --workspace "$@"

# Run the long tests, which `test` leaves out, on a release build
[group('change')]
test-long:
    cargo build --release -p expediter
    EXPEDITER_TEST_BIN='{{ target }}/release/expediter' \
        cargo test --release -p expediter-it -- --ignored long_

# Write the crates' documentation; --open shows it
[group('change')]
doc *ARGS:
    cargo doc --workspace --no-deps "$@"

# Delete the tools that ops/just has installed
[group('change')]
clean-tools:
    rm -rf .tools
