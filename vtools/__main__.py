from vtools.cli import main

main()
