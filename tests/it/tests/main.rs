mod architecture;
mod crash;
mod probes;
