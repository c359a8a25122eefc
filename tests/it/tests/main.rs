mod architecture;
mod probes;
