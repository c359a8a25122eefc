mod architecture;
mod cli;
mod crash;
mod flow;
mod probes;
