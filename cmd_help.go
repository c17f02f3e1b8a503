package main

import "github.com/urfave/cli/v2"

func (p *program) helpCommand() *cli.Command {
	return &cli.Command{
		Name: "help", Category: "Help", Usage: "show the commands, or the options of one",
		ArgsUsage:   "[COMMAND]",
		Description: "ostree-image help\nostree-image help pull",
		Before:      wantArgs(0, 1), Action: p.help,
	}
}

func (p *program) help(c *cli.Context) error {
	name := c.Args().First()
	if name == "" {
		return cli.ShowAppHelp(c)
	}
	if c.App.Command(name) == nil {
		return unknownCommand(c.App, name)
	}
	return cli.ShowCommandHelp(c, name)
}
