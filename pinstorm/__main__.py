from pinstorm.cli import main

main()
